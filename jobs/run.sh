# Sourced by the job files. Runs mpiprop within the job until the run folder says `done`; puts the job back in the queue where
# another attempt goes on from the checkpoint: after exit code 75, and after a launcher that was lost.

asked='' ended=''
trap 'asked=1' USR1          # Slurm gives notice: save and leave, then requeue
trap 'asked=1 ended=1' TERM  # scancel, or Slurm is requeueing by itself: save and leave, no more
. "${MPIPROP:-$SLURM_SUBMIT_DIR}/jobs/env.sh"

# objects KEY CONFIG ARGUMENT...: a run of CONFIG for each prompt or image (KEY) that the arguments of the job name.
objects() {
    local key=$1 config=$2 variable=${1^^} subjects subject
    shift 2
    if [ "${1:-}" = "--${key}s" ]; then
        mapfile -d '' subjects < <(listed "$2")
        [ ${#subjects[@]} -gt 0 ] || fail "--${key}s $2: no list of ${key}s"
        if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
            [ -n "${subjects[SLURM_ARRAY_TASK_ID - 1]:-}" ] && [ "$SLURM_ARRAY_TASK_ID" -gt 0 ] \
                || fail "--array: $2 has ${key}s 1 to ${#subjects[@]}, no $SLURM_ARRAY_TASK_ID"
            subjects=("${subjects[SLURM_ARRAY_TASK_ID - 1]}")
        fi
        shift 2
    elif [ -n "${!variable:-}" ]; then
        subjects=("${!variable}")
    else
        [ -n "${1:-}" ] || fail "nothing to make: sbatch jobs/... \"$key\" [CONFIG] [key=value ...], or --${key}s FILE"
        subjects=("$1")
        shift
    fi
    for subject in "${subjects[@]}"; do
        one "$config" "$key=$subject" "$@"
    done
}

# one CONFIG [KEY=SUBJECT] [CONFIG] [key=value ...]: a run, in a folder named by its words. The second CONFIG wins.
one() {
    local words=("$@") word run i
    for ((i = 1; i < ${#words[@]}; i++)); do
        [[ ${words[i]} =~ ^[A-Za-z_0-9.]+= ]] || { words[0]=${words[i]}; unset "words[$i]"; break; }
    done
    words=("${words[@]}")
    word=${words[1]:-}
    [[ $word != image=* ]] || word=${word##*/}
    run=$RUNS/$(slug "${words[0]##*/} ${word#*=}")-$(printf '%s\0' "${words[@]}" | sha256sum | head -c 6)
    attempt "$run" "${words[@]}"
}

# attempt RUN CONFIG [key=value ...]: comes back when RUN is done, and else leaves the job.
attempt() {
    local run=$1 code
    [ ! -e "$run/done" ] || { note "$run: done already"; return; }
    [ -z "$asked" ] || again "$run: not begun"
    mkdir -p "$run" || fail "$run: cannot be made"
    rm -f "$run/stop"
    note "$run: attempt $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST"
    launch python -m mpiprop run "${@:2}" --out "$run" --resume &
    while kill -0 $! 2>/dev/null; do
        if [ -n "$asked" ]; then
            touch "$run/stop"  # over and over: a program that is just starting takes an old one for a left-over
            sleep 0.5
        else
            wait $!  # until it ends, or a signal comes
        fi
    done
    wait $!
    code=$?
    if [ -e "$run/done" ]; then
        rm -f "$run/.lost" "$run/stop"
        return
    fi
    case $code in
        75) again "$run: saved" ;;
        1 | 2)
            [ $code = 1 ] && [ -n "$asked" ] && [ "$LAUNCHER" = mpirun ] || fail "$run: exit code $code" $code
            lost "$run" $code ;;  # what mpirun returns when it is told to end, whatever its ranks return
        *) lost "$run" $code ;;  # killed, or what MPI or the launcher makes of that: 137, 14, 9; mpirun even 0
    esac
}

launch() {
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun no longer takes it from the job by itself
    unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK        # every rank sees all GPUs of the job on its node, and takes one
    case $LAUNCHER in
        srun) exec srun $SRUN "$@" ;;
        mpirun) exec mpirun $MPIRUN "$@" ;;
        *) fail "LAUNCHER=$LAUNCHER: srun or mpirun" ;;
    esac
}

# lost RUN CODE: another attempt, but no more than RETRIES in a row that end at the same checkpoint.
lost() {
    local now last=none count=0
    [ -z "$ended" ] || again "$1: ended"
    now=$(python -c 'if True:
        import h5py, sys
        at = h5py.File(sys.argv[1]).attrs
        print(at["stage"].decode(), at["tau"])' "$1/window.h5" 2>/dev/null)
    [ ! -e "$1/.lost" ] || read -r count last <"$1/.lost"
    [ "$now" = "$last" ] || count=0
    echo "$((++count)) $now" >"$1/.lost"
    [ $count -le "$RETRIES" ] || fail "$1: lost $count times at ${now:-the beginning}" "$2"
    again "$1: lost (exit code $2) after ${now:-nothing}"
}

again() {
    local job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    [ -z "$ended" ] || fail "$1; told to end" 75
    [ "${SLURM_RESTART_COUNT:-0}" -lt "$RESTARTS" ] || fail "$1; $RESTARTS restarts are enough" 75
    note "$1; requeue"
    trap - USR1 TERM
    scontrol requeue "$job" && exec sleep 300  # Slurm ends it: a job that exits is over
    fail "$1; cannot be requeued" 75
}

# listed FILE: the lines of FILE, or the texts of its JSON, each ended by a NUL.
listed() {
    python -c 'if True:
        import sys; from pathlib import Path
        from mpiprop.config.prompts import read_prompts; from mpiprop.core.errors import UserError
        try:
            print(*read_prompts(sys.argv[1]), sep="\0", end="\0")
        except UserError as error:
            sys.exit(f"{error}")' "$1"
}

slug() {
    tr -cs 'a-z0-9' - <<<"${1,,}" | head -c 60 | sed 's/^-*//; s/-*$//'
}

note() {
    echo "$(date '+%F %T') job ${SLURM_JOB_ID}: $*"
}

fail() {  # TEXT [CODE]
    note "$1" >&2
    exit "${2:-2}"
}
