# The settings of this site: the one file to edit. Source it on the login node before sbatch (`. jobs/env.sh`), which reads the
# SBATCH_ variables; every job sources it again. What is set in the environment already wins.

export MPIPROP=${MPIPROP:-$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)}  # the clone

# Where jobs go. A word on sbatch's command line wins, a #SBATCH line loses.
# export SBATCH_ACCOUNT=project
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=24:00:00

# Software: the site's modules, then the environment that mpiprop is installed in.
# module load cuda openmpi
: "${VENV:=$MPIPROP/.venv}"
[ ! -r "$VENV/bin/activate" ] || . "$VENV/bin/activate"

# MPI. Every library with Open MPI's or MPICH's interface will do; mpi4py takes the first libmpi that it finds, or this one.
# export MPI4PY_LIBMPI=/opt/openmpi/lib/libmpi.so.40
: "${LAUNCHER:=srun}"                       # srun or mpirun; srun tells the ranks of a preemption, mpirun lets them die
: "${SRUN:=--mpi=pmix --wait=120}"          # its words (plugins: `srun --mpi=list`); --wait ends a step that lost a rank
: "${MPIRUN:=--bind-to none}"               # its words; on several nodes -x NAME for what the ranks need of the environment
export MPIPROP_CUDA_AWARE=${MPIPROP_CUDA_AWARE:-auto}  # 1: device memory goes to MPI, 0: through the host, auto: where it works

# Runs.
: "${RUNS:=runs}"        # where run folders go: a file system that all nodes see; seen from where sbatch was called
: "${RESTARTS:=1000}"    # how often a job may put itself back in the queue
: "${RETRIES:=3}"        # how often in a row it may do so after a crash without getting further
