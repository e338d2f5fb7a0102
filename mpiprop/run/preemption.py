"""Being asked to leave: SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal) or SIGUSR1 on any rank, or a file named `stop` in
the run folder.

`listen` comes before anything heavy, on every rank: launchers signal all of them, and one that dies by the default action
takes the job along. While a rank has nothing that is newer than the checkpoint (start-up, between stages) a signal ends it at
once; while it `hold`s something it raises a flag, which waits poll.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from time import monotonic, sleep, time
from typing import TYPE_CHECKING

from mpiprop.core.console import tell
from mpiprop.core.errors import INTERRUPTED, PREEMPTED
from mpiprop.core.launcher import command, launched_rank

if TYPE_CHECKING:  # nothing is loaded that can wait until signals are heard
    from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PATIENCE = "saving; Ctrl-C once more leaves at once, with the last checkpoint"
_asked: list[str] = []
_again = ["run", "demo", "--resume"]  # the words that continue this run
_folder: list[Path] = []
_looked = [0.0]
_since = time()
_held = False


def listen(words: Sequence[str]) -> None:
    """From now on a signal asks the command `words` to leave; a second SIGINT kills.

    What the process inherited as ignored (SIGHUP under nohup, SIGINT in the background of a script) stays ignored. Commands
    other than `run` have nothing to save: SIGINT ends them, and the rest keeps its default.
    """
    if words and words[0] != "run":
        handle(_interrupted, [signal.SIGINT])
        return
    if words:
        _again[:] = [word for word in words if word != "--resume"] + ["--resume"]
    handle(_heard)


def handle(handler: Callable[[int, object], None], signals: Sequence[signal.Signals] = SIGNALS) -> None:
    """From now on `handler` gets the signals that ask to leave, but for those that the process inherited as ignored."""
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def resumes(config: str, overrides: Sequence[str], folder: Path) -> None:
    """Now that its folder is known: what continues this run."""
    _again[:] = ["run", config, *overrides, "--out", str(folder), "--resume"]


def again() -> str:
    """The command that continues this run."""
    return command(_again)


def hold() -> None:
    """From now on there may be something to save: a signal only makes `asked` true."""
    global _held
    _held = True


def release() -> None:
    """From now on nothing is newer than the checkpoint: a signal ends the process, and one that has come does so now."""
    global _held
    _held = False
    if _asked:
        _leave()


def over() -> None:
    """Ignore signals until the process ends: the run has its exit code."""
    for number in SIGNALS:
        if signal.getsignal(number) is _heard:  # Python's own end gives its handlers up, but what is ignored stays so
            signal.signal(number, signal.SIG_IGN)


def watch(folder: Path) -> None:
    """Also leave when `folder`/stop appears. A file from before this process is removed."""
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


def _heard(number: int, _frame: object) -> None:
    first = not _asked
    _asked.append(signal.Signals(number).name)
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not _held:
        _leave()
    elif first and number == signal.SIGINT and launched_rank() == 0:
        tell(PATIENCE)


def _leave() -> None:
    """End the process, in whatever it was doing: MPI's collectives cannot be left in another way."""
    who = ""
    if rank := launched_rank():
        sleep(1)  # most often all ranks are asked, and the first speaks for all: the launcher ends the others
        who = f"rank {rank}: "
    tell(f"{who}{_asked[0]}: nothing to save that is not on disk; go on with: {again()}")
    os._exit(PREEMPTED)


def _interrupted(_number: int, _frame: object) -> None:
    tell("mpiprop: interrupted")
    os._exit(INTERRUPTED)
