"""Programs that start themselves again under mpirun."""

import os
import subprocess
import sys
from pathlib import Path

from mpiprop.core.errors import UserError
from mpiprop.core.launcher import launched
from mpiprop.cli.launch import mpirun


def relaunch(ranks: int) -> None:
    """Returns at once on a rank; else this program runs on so many ranks of this host, and its exit code is theirs."""
    if launched():
        return
    try:
        program = mpirun()
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
    lines = (Path(__file__).parent / "mpi.env").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")) | os.environ
    sys.exit(subprocess.call([program, "-n", str(ranks), "--bind-to", "none", sys.executable, *sys.argv], env=env))
