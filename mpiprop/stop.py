"""Whether the run has been asked to leave: SIGTERM, SIGUSR1 (any rank), or a file named `stop` in the run folder.

Imported and armed before anything heavy, on every rank: launchers signal all of them, and one that dies by the default
action takes the job along. Handlers only raise a flag; waits poll it.
"""

import signal
import sys
from pathlib import Path
from time import monotonic, time

from .core.errors import PREEMPTED

_asked: list[str] = []
_folder: list[Path] = []
_looked = [0.0]
_since = time()


def listen() -> None:
    """From now on SIGTERM and SIGUSR1 raise the flag instead of killing the process."""
    for name in ("SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), lambda number, frame, name=name: _asked.append(name))


def ignore() -> None:
    """Back to the default: for commands that have nothing to save, a signal is the end."""
    for name in ("SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    if _asked:
        sys.exit(PREEMPTED)


def watch(folder: Path) -> None:
    """Also leave when `folder`/stop appears; one from before this process is an old story and removed."""
    _folder[:] = [folder]
    if (flag := folder / "stop").exists() and flag.stat().st_mtime < _since:
        flag.unlink()


def asked() -> str:
    """Why the run should leave, or an empty string. The file is looked for at most twice a second."""
    if not _asked and _folder and monotonic() - _looked[0] > 0.5:
        _looked[0] = monotonic()
        if (_folder[0] / "stop").exists():
            _asked.append(f"{_folder[0] / 'stop'}")
    return _asked[0] if _asked else ""
