"""Ctrl-C on a real terminal, a closed terminal, and signals to single ranks: saved, told how to go on, and the same bits."""

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from finished import flat

TOY = ["run", "toy", "stages.0.steps=60", "turntable.frames=24", "mesh.resolution=16", "checkpoint.every_s=0"]
PROGRAM = [sys.executable, "-m", "mpiprop"]


class Terminal:
    """A program on a terminal of its own, as its foreground group."""

    def __init__(self, *command: object) -> None:
        self.keys, screen = pty.openpty()

        def begin() -> None:
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)  # whatever these tests were started with
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen([*map(str, command)], stdin=screen, stdout=screen, stderr=screen, preexec_fn=begin,
                                        start_new_session=True)
        os.close(screen)
        self.shown = ""

    def read(self, until: Callable[[], bool], limit: float = 120) -> str:
        """What has been shown when `until` holds, or the program has ended."""
        end, over = time.monotonic() + limit, False
        while not (over or until()):
            assert time.monotonic() < end, self.shown
            over = self.process.poll() is not None  # and then once more, for its last words
            while select.select([self.keys], [], [], 0.01)[0]:
                with suppress(OSError):  # nobody has the terminal open
                    if data := os.read(self.keys, 65536):
                        self.shown += data.decode()
                        continue
                break
        return self.shown

    def press_ctrl_c(self) -> None:
        os.write(self.keys, b"\x03")

    def end(self) -> tuple[int, str]:
        """The exit code and all that was shown."""
        self.read(lambda: False)
        return self.process.wait(), self.shown

    def members(self) -> Iterator[tuple[int, str]]:
        """The processes that it has started, itself included, and their environments."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone since
                if os.getsid(pid := int(folder.name)) == self.process.pid:
                    yield pid, (folder / "environ").read_text()

    def ranks(self) -> dict[int, int]:
        """The process of each rank."""
        found = ((re.search(r"OMPI_COMM_WORLD_RANK=(\d+)", words), pid) for pid, words in self.members())
        return {int(rank[1]): pid for rank, pid in found if rank}

    def kill(self) -> None:
        for pid, _ in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., Terminal]]:
    """A function that begins a program on a terminal, to be ended with the test at the latest."""
    begun: list[Terminal] = []

    def begin(*command: object) -> Terminal:
        begun.append(Terminal(*command))
        return begun[-1]
    yield begin
    for terminal in begun:
        terminal.kill()
        with suppress(OSError):  # the test has closed it
            os.close(terminal.keys)


def hears(pid: int) -> bool:
    """Whether the process catches SIGTERM."""
    with suppress(OSError):  # gone since
        return bool(int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)
                    >> signal.SIGTERM - 1 & 1)
    return False


def imports_torch(pid: int) -> bool:
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    return False


def slides(folder: Path, least: int) -> bool:
    return (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") >= least


def told_command(shown: str) -> list[str]:
    """The command that the program tells to go on with."""
    (line,) = set(re.findall(r"go on with: (.*)", shown))
    program = shlex.split(line)
    return [sys.executable if word == "python" else word for word in program]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run([*PROGRAM, *TOY, "--out", folder], check=True, timeout=120, stdout=subprocess.DEVNULL)
    return folder


def test_ctrl_c_at_every_stage_of_a_run_in_one_process(on_terminal, undisturbed, tmp_path):
    folder = tmp_path / "run"
    moments = [lambda pid: hears(pid), lambda pid: imports_torch(pid), lambda _: (folder / "config.yaml").exists(),
               lambda _: slides(folder, 2), lambda _: slides(folder, 6), lambda _: (folder / "views").exists()]
    command = [*PROGRAM, *TOY, "--out", folder]
    for moment in moments:
        terminal = on_terminal(*command)
        terminal.read(lambda: moment(terminal.process.pid))
        terminal.press_ctrl_c()
        code, shown = terminal.end()
        assert code == 75 and "SIGINT: " in shown and "Traceback" not in shown, shown
        command = told_command(shown)
        assert not (folder / "done").exists()
    assert "step 60 of 60 saved" in shown  # it was writing results
    assert subprocess.run(command, timeout=120, stdout=subprocess.DEVNULL).returncode == 0
    assert flat(folder) == flat(undisturbed) and (folder / "done").exists()


@pytest.mark.mpi
def test_ctrl_c_at_every_stage_of_a_run_on_three_ranks(on_terminal, undisturbed, tmp_path):
    folder = tmp_path / "run"

    def some(holds: Callable[[int], bool]) -> Callable[[], bool]:
        return lambda: any(map(holds, terminal.ranks().values()))
    moments = [lambda: hears(terminal.process.pid), lambda: bool(terminal.ranks()), some(imports_torch),
               lambda: (folder / "config.yaml").exists(), lambda: slides(folder, 3), lambda: (folder / "views").exists()]
    command = [*PROGRAM, *TOY, "--ranks", 3, "--out", folder]
    for moment in moments:
        terminal = on_terminal(*command)
        terminal.read(moment)
        terminal.press_ctrl_c()
        code, shown = terminal.end()
        assert code == 75 and "Traceback" not in shown, shown
        command = told_command(shown)
        assert command[command.index("--ranks") + 1] == "3" and not (folder / "done").exists()
    del command[(at := command.index("--ranks")):at + 2]  # the rest on one
    assert subprocess.run(command, timeout=120, stdout=subprocess.DEVNULL).returncode == 0
    assert flat(folder) == flat(undisturbed)


@pytest.mark.mpi
def test_a_signal_to_one_rank_at_any_moment_ends_all_with_75(on_terminal, undisturbed, tmp_path):
    folder = tmp_path / "run"
    command = ["mpirun", "-n", 3, *PROGRAM, *TOY, "--out", folder, "--resume"]
    moments = {2: lambda: imports_torch(terminal.ranks().get(2, 0)), 0: lambda: slides(folder, 1),
               1: lambda: slides(folder, 4)}
    for rank, moment in moments.items():
        terminal = on_terminal(*command)
        terminal.read(moment)
        os.kill(terminal.ranks()[rank], signal.SIGINT)
        code, shown = terminal.end()
        assert code == 75 and "go on with: mpirun -n 3 python -m mpiprop run toy" in shown, shown
        assert "Traceback" not in shown
    assert subprocess.run(command[3:], timeout=120, stdout=subprocess.DEVNULL).returncode == 0  # on one rank
    assert flat(folder) == flat(undisturbed)


@pytest.mark.mpi
def test_ctrl_c_to_mpirun_itself_loses_nothing_that_was_saved(on_terminal, undisturbed, tmp_path):
    folder = tmp_path / "run"
    command = ["mpirun", "-n", 3, *PROGRAM, *TOY, "--out", folder, "--resume"]
    for moment in (lambda: len(terminal.ranks()) == 3, lambda: slides(folder, 3)):
        terminal = on_terminal(*command)
        terminal.read(moment)
        terminal.press_ctrl_c()
        code, shown = terminal.end()
        assert code == 1 and "Traceback" not in shown  # mpirun's own code, whatever ranks return
    assert subprocess.run(command[3:], timeout=120, stdout=subprocess.DEVNULL).returncode == 0  # on one rank
    assert flat(folder) == flat(undisturbed)


@pytest.mark.mpi
def test_a_killed_mpirun_leaves_no_files_that_would_make_a_later_one_fail(on_terminal, tmp_path):
    """An mpirun with the process number of the killed one finds its files, and fails."""
    (tmp_path / "temporary").mkdir()
    folder = tmp_path / "run"
    terminal = on_terminal("env", f"TMPDIR={tmp_path / 'temporary'}", *PROGRAM, *TOY, "--ranks", 3, "--out", folder)
    terminal.read(lambda: slides(folder, 1))
    (mpirun,) = {int(re.search(r"PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
                 for pid in terminal.ranks().values()}
    os.kill(mpirun, signal.SIGKILL)
    code, shown = terminal.end()
    assert code == 128 + signal.SIGKILL and not list((tmp_path / "temporary").iterdir()), shown


def test_a_closed_terminal_saves(on_terminal, tmp_path):
    folder = tmp_path / "run"
    terminal = on_terminal(*PROGRAM, *TOY, "stages.0.steps=5000", "--out", folder)
    terminal.read(lambda: slides(folder, 2))
    os.close(terminal.keys)
    assert terminal.process.wait(60) == 75
    assert (folder / "window.h5").exists() and "SIGHUP: step" in (folder / "run.log").read_text()


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    command = [*PROGRAM, "run", "toy", "stages.0.steps=6", "turntable.frames=1", "mesh.resolution=8", "--out", tmp_path / "run"]
    script = f"{shlex.join(map(str, command))} 2>&1 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "run" / "done").exists() and len(done.stdout.splitlines()) == 1


LISTENER = """
import sys, time
from mpiprop.run import preemption
preemption.listen(sys.argv[1:])
preemption.hold()
print("up", flush=True)
while not preemption.asked():
    time.sleep(0.01)
print(preemption.asked(), flush=True)
while True:
    time.sleep(1)
"""


def test_a_second_ctrl_c_leaves_at_once(on_terminal):
    terminal = on_terminal(sys.executable, "-c", LISTENER, "run", "toy")
    assert "up" in terminal.read(lambda: "up" in terminal.shown)
    terminal.press_ctrl_c()
    assert "Ctrl-C once more leaves at once" in terminal.read(lambda: terminal.shown.count("SIGINT") == 1)
    terminal.press_ctrl_c()
    code, shown = terminal.end()
    assert code == -signal.SIGINT and "Traceback" not in shown  # which shells show as 130


def test_what_was_ignored_at_the_start_stays_ignored():
    process = subprocess.Popen(["nohup", sys.executable, "-c", LISTENER, "run", "toy"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1\n"
    process.kill()
    process.communicate()


def test_ctrl_c_ends_a_command_that_has_nothing_to_save_with_one_line(on_terminal, undisturbed, tmp_path):
    terminal = on_terminal(*PROGRAM, "export", undisturbed, "--resolution", 200, "--out", tmp_path / "x.glb")
    terminal.read(lambda: imports_torch(terminal.process.pid))
    terminal.press_ctrl_c()
    code, shown = terminal.end()
    assert code == 130 and shown.split() == ["^Cmpiprop:", "interrupted"]
    assert not list(tmp_path.iterdir())
