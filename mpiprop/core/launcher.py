"""What the launcher (mpirun, srun) tells a process about its job, before MPI is up."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
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
    program = ["mpiprop"] if Path(sys.argv[0]).name == "mpiprop" else ["python", "-m", "mpiprop"]
    ranks = launched_ranks() if launched() else None
    launcher = [] if ranks is None else ["mpirun" if "OMPI_COMM_WORLD_SIZE" in os.environ else "srun", "-n", str(ranks)]
    return shlex.join([*launcher, *program, *words])
