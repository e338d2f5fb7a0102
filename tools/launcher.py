"""Programs that start themselves again under mpirun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def relaunch(ranks: int) -> None:
    """Returns at once on a rank; else this program runs on so many ranks of this host, and its exit code is theirs."""
    if any(name in os.environ for name in LAUNCHED):
        return
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpirun is None:
        sys.exit(f"{Path(sys.argv[0]).stem}: needs mpirun on the PATH")
    lines = (Path(__file__).parent / "mpi.env").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")) | os.environ
    sys.exit(subprocess.call([mpirun, "-n", str(ranks), "--bind-to", "none", sys.executable, *sys.argv], env=env))
