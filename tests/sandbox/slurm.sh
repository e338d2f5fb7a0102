#!/usr/bin/env bash
# slurm.sh start [NODES] | stop | can
#
# A Slurm cluster on one machine, for tests: the nodes are the hosts of hosts.sh, the controller runs beside them. Partitions:
# `low` (the default, preempted by requeueing) and `high`. Each node poses with 8 cores and 4 GPUs, which are /dev/null.
#
#   apt install slurmctld slurmd slurm-client munge libpmix2 iproute2      # Debian 12
#   slurm.sh start 3 && export SLURM_CONF=/tmp/mpiprop-sandbox/slurm.conf && sinfo
#
# SANDBOX (default /tmp/mpiprop-sandbox): a folder for what it keeps. GRACE, KILLWAIT: seconds before a preempted, an ended job
# is killed.

export SANDBOX=${SANDBOX:-/tmp/mpiprop-sandbox}
export SLURM_CONF=$SANDBOX/slurm.conf
hosts=$(dirname "${BASH_SOURCE[0]}")/hosts.sh
pmix=/usr/lib/x86_64-linux-gnu/pmix2/lib

can() {
    local program
    for program in slurmctld slurmd sbatch munged; do
        command -v $program >/dev/null || { echo "no $program"; return 1; }
    done
    "$hosts" can
}

configure() {  # NODES
    local net i
    net=$(cat "$SANDBOX/net")
    cat <<END
ClusterName=sandbox
SlurmctldHost=$(hostname -s)($net.254)
SlurmctldPort=$((26000 + ${net##*.}))
SlurmUser=root
AuthInfo=socket=$SANDBOX/munge.sock,cred_expire=5
StateSaveLocation=$SANDBOX/state
SlurmdSpoolDir=$SANDBOX/%n/spool
SlurmctldPidFile=$SANDBOX/slurmctld.pid
SlurmdPidFile=$SANDBOX/%n/slurmd.pid
SlurmctldLogFile=$SANDBOX/slurmctld.log
SlurmdLogFile=$SANDBOX/%n/slurmd.log
TmpFS=$SANDBOX/tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=${KILLWAIT:-10}
MinJobAge=3600
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=${GRACE:-20} DefaultTime=30
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=30
END
    for ((i = 1; i <= $1; i++)); do
        echo "NodeName=h$i NodeAddr=$net.$i CPUs=8 RealMemory=16000 Gres=gpu:4"
    done
}

start() {
    stop
    "$hosts" up "$1" && chmod 755 "$SANDBOX" || return 1  # for munged
    local i
    for ((i = 0; i < 4; i++)); do
        [ -e "$SANDBOX/gpu$i" ] || mknod "$SANDBOX/gpu$i" c 1 3
    done
    echo "Name=gpu File=$SANDBOX/gpu[0-3]" >"$SANDBOX/gres.conf"
    echo CgroupPlugin=cgroup/v1 >"$SANDBOX/cgroup.conf"  # not used, but slurmd loads one
    configure "$1" >"$SLURM_CONF"
    [ ! -e $pmix/libpmix.so.2 ] || ln -sf libpmix.so.2 $pmix/libpmix.so  # Debian's plugin wants the name of the -dev package
    (umask 077; head -c 128 /dev/urandom >"$SANDBOX/munge.key")
    munged --key-file="$SANDBOX/munge.key" --socket="$SANDBOX/munge.sock" --pid-file="$SANDBOX/munged.pid" \
        --log-file="$SANDBOX/munged.log" --seed-file="$SANDBOX/munge.seed" || return 1
    mkdir -p "$SANDBOX/state"
    slurmctld -c -i || return 1
    for ((i = 1; i <= $1; i++)); do
        setsid "$hosts" "h$i" "exec slurmd -D -N h$i" </dev/null >"$SANDBOX/h$i/out" 2>&1 &
    done
    for ((i = 0; i < 100; i++)); do
        [ "$(timeout 2 sinfo -h -p low -N -o %T 2>/dev/null | grep -c idle)" != "$1" ] || return 0
        sleep 0.2
    done
    echo "the nodes do not come up; see $SANDBOX/*.log and $SANDBOX/h*/*" >&2
    return 1
}

stop() {
    "$hosts" down
    local name
    for name in slurmctld munged; do
        [ ! -s "$SANDBOX/$name.pid" ] || kill "$(cat "$SANDBOX/$name.pid")" 2>/dev/null \
            && while kill -0 "$(cat "$SANDBOX/$name.pid" 2>/dev/null)" 2>/dev/null; do sleep 0.1; done
    done
    rm -rf "$SANDBOX"/{state,*.pid,munge.*,h*}
}

case ${1:-} in
    can) can ;;
    start) start "${2:-3}" ;;
    stop) stop ;;
    *) sed -n '2,/^$/s/^# \?//p' "$0"; exit 2 ;;
esac
