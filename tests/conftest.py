"""What all tests share: one thread, MPI on one host without probing for fabrics, the program run for real."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).parent.parent
os.environ.update(line.split("=", 1) for line in (ROOT / "tools/mpi.env").read_text().splitlines() if line[0] != "#")
os.environ.update({
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # An mpirun fails on the files of a killed one with its process number.
    "TMPDIR": tempfile.mkdtemp(prefix="mpiprop-tests-", dir="/tmp"),
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # where mpi4py looks first, too
})

atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)

import torch  # noqa: E402  (after the number of threads)

import shapes  # noqa: E402

shapes.check()  # before anything of mpiprop is imported

torch.set_num_threads(1)

Launch = Callable[..., subprocess.Popen[str]]
Mpirun = Callable[..., subprocess.CompletedProcess[str]]
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.fixture
def launch() -> Iterator[Launch]:
    """A function that begins `mpirun -n N python -m mpiprop ...`, to be ended with the test at the latest.

    N = 0 does without a launcher; `program` replaces `-m mpiprop`.
    """
    begun: list[subprocess.Popen[str]] = []

    def begin(n: int, *args: object, env: dict[str, str] | None = None, program: tuple[str, ...] = ("-m", "mpiprop"),
              cwd: Path | None = None) -> subprocess.Popen[str]:
        command = [*(["mpirun", "-n", str(n)] if n else []), sys.executable, *program, *map(str, args)]
        begun.append(subprocess.Popen(command, env=os.environ | (env or {}), cwd=cwd, text=True, start_new_session=True,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return begun[-1]

    yield begin
    for process in begun:
        kill(process)
        process.communicate()


@pytest.fixture
def mpirun(launch: Launch) -> Mpirun:
    """A function that runs what `launch` begins to its end, or fails after `timeout` s with what it had said."""
    def run(n: int, *args: object, timeout: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
        process = launch(n, *args, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill(process)
            out, err = process.communicate()
            pytest.fail(f"no end after {timeout} s: {' '.join(process.args)}\n{out[-2000:]}\n{err[-2000:]}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
    return run


def kill(process: subprocess.Popen[str]) -> None:
    """End the process and all it started: ranks have process groups of their own, but the session of the launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):  # gone since
            if os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared prompts, pictures and meshes (MPIPROP_SHARED, or shared/ beside the checkout)."""
    folder = Path(os.environ.get("MPIPROP_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _no_silent_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_silent_skip((yield))


def _no_silent_skip(report: Report) -> Report:
    """In CI (CI=true) a skip for any other reason than a missing GPU is a failure."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith("no GPU"):
            report.outcome, report.longrepr = "failed", f"skipped in CI: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `mpi` need a launcher, `gpu` a GPU; of `hosts` and `slurm` their sandbox knows what they need."""
    lacking = {"mpi": not shutil.which("mpirun") and "no mpirun", "gpu": not torch.cuda.is_available() and "no GPU"}
    for name in ("hosts", "slurm"):
        if any(item.get_closest_marker(name) for item in items):
            can = subprocess.run([ROOT / f"tests/sandbox/{name}.sh", "can"], capture_output=True, text=True)
            lacking[name] = can.returncode != 0 and can.stdout.strip()
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: not item.get_closest_marker("slurm"))  # the longest first, so that two workers end together
