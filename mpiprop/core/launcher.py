"""What the launcher (mpirun, srun) tells a process about its job, before MPI is up."""

import os
import sys
from collections.abc import Sequence

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
ASKED = "MPIPROP_RANKS"  # how many `run --ranks` has started
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


def launched() -> bool:
    """Whether a launcher started this process. A batch script of Slurm has a SLURM_PROCID too, but no step."""
    return any(name in os.environ for name in (*RANKS[:3], "SLURM_STEP_ID"))


def launched_rank() -> int:
    """This process's rank; 0 without a launcher."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0)


def launched_ranks() -> int | None:
    """The number of ranks, where the launcher tells it."""
    return next((int(os.environ[name]) for name in SIZES if name in os.environ), None)


def command(words: Sequence[str]) -> str:
    """The command line that starts mpiprop with these words as this process was started, for a shell."""
    import shlex

    program = ["mpiprop"] if os.path.basename(sys.argv[0]) == "mpiprop" else ["python", "-m", "mpiprop"]
    ranks = launched_ranks() if launched() else None
    if ranks is None:
        return shlex.join([*program, *words])
    if ASKED in os.environ:
        return shlex.join([*program, *words, *([] if "--ranks" in words else ["--ranks", str(ranks)])])
    return shlex.join(["mpirun" if "OMPI_COMM_WORLD_SIZE" in os.environ else "srun", "-n", str(ranks), *program, *words])
