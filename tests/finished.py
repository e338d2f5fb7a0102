"""What a run has ended with, and what it took."""

import re
import subprocess
import sys
from pathlib import Path

import h5py


def flat(folder: Path, stage: str | None = None) -> bytes:
    """/x/flat of a finished run, and a check that it is finished; where a stage is named, in that one and with a mesh."""
    with h5py.File(folder / "window.h5") as file:
        assert file.attrs["complete"] and (folder / "done").exists()
        assert stage is None or file.attrs["stage"] == stage.encode() and (folder / "mesh.glb").exists()
        return file["x/flat"][()].tobytes()


def measured(*words: object, cwd: Path) -> tuple[subprocess.CompletedProcess[str], int]:
    """The command of these words in a process of its own, ended, and the bytes of memory that it had at its peak."""
    program = ("import re, sys; from mpiprop.cli.main import main; code = main(); "
               "kB = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]; "
               "print('peak', int(kB) * 1024); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, cwd=cwd,
                          timeout=300)
    return done, int(re.search(r"peak (\d+)", done.stdout)[1])
