"""What stands around the loop: checkpoints written aside while it goes on, the status line, whole logs, TensorBoard."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpiprop.run import checkpoint
from mpiprop.cli.main import dispatch
from mpiprop.run.checkpoint import Checkpoint
from mpiprop.core.errors import RunError
from mpiprop.run.log import Log
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Drift, Layout, Theta
from mpiprop.run.saver import Keeper
from mpiprop.optim import optimisers, rollout
from mpiprop.picard import threshold
from mpiprop.picard.pipelined import propel
from mpiprop.picard.window import Window
from mpiprop.transport.serial import Serial

LAYOUT = Layout.of([("w", (300,), "a")], [("rides", (8,))])
T = 40
SHORT = ["stages.0.steps=10", "turntable.frames=2", "turntable.size=16", "mesh.resolution=8"]


def slides(kind: str, e: float) -> Iterator[Window]:
    """The windows of a small run, whose gradients come in one buffer and whose riding state is renewed now and then."""
    grad = torch.empty(LAYOUT.D)

    def unit(theta: Theta, tau: int) -> Drift:
        torch.add(theta.trained, normal(Streams(0, tau)("noise"), LAYOUT.D), alpha=0.3, out=grad)
        return Drift(grad, {"loss": float(grad.square().mean())})

    def refresh(theta: Theta, tau: int) -> Theta:
        if tau % 5:
            return theta
        fresh = Theta(theta.flat.clone(), theta.layout)
        fresh.flat[LAYOUT.D:] += 1
        return fresh

    step = rollout.Rollout(getattr(optimisers, kind)(LAYOUT, lr=0.02), refresh)
    start = Window(step.start(Theta(normal(Streams(0, 0)("theta"), LAYOUT.L), LAYOUT)), (), e)
    return propel(start, Serial(unit, lambda: False), step, p=5, T=T, threshold=threshold.fixed, predict=step.optimiser.predict)


def held(path: Path) -> list[bytes]:
    """All numbers of a checkpoint."""
    window = checkpoint.load(path).window
    vectors = [window.x.theta.flat, *window.x.slots.values(), *(theta.flat for theta in window.guess)]
    return [repr((window.x.tau, window.k, window.e)).encode(), *(vector.numpy().tobytes() for vector in vectors)]


class Slow(Keeper):
    """A keeper whose disk waits until it is let go."""

    go: Event

    def write(self, window: Window, complete: bool = False) -> None:
        assert self.go.wait(30)
        super().write(window, complete)


@pytest.mark.parametrize("e", [0.0, 1e-3])
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Adan"])
def test_a_checkpoint_written_while_the_run_goes_on_is_that_of_its_moment(tmp_path, kind, e):
    """Every window, written when all others have been computed, is to the last bit what it was when it was yielded."""
    keepers = []
    for window in slides(kind, e):
        checkpoint.save(tmp_path / f"{window.k}-at-once.h5", Checkpoint(window, "one", 0, "x: 1"))
        keepers.append(Slow(tmp_path / f"{window.k}-aside.h5", "one", 0, "x: 1", every_s=0))
        keepers[-1].go = Event()
        keepers[-1].offer(window)
    assert len(keepers) > 5 and not list(tmp_path.glob("*-aside.h5"))
    for keeper in keepers:
        keeper.go.set()
        keeper.writing.result(30)
        assert held(keeper.path) == held(Path(str(keeper.path).replace("aside", "at-once")))


def test_one_write_at_a_time_and_the_last_word_is_the_newest(tmp_path):
    windows = list(slides("Adam", 0.0))
    keeper = Slow(tmp_path / "window.h5", "one", 0, "x: 1", every_s=0)
    keeper.go = Event()
    for window in windows[:4]:
        keeper.offer(window)  # the first is still being written: the others are passed over
    keeper.go.set()
    keeper.writing.result(30)
    assert checkpoint.load(keeper.path).window.x.tau == windows[0].x.tau
    keeper.offer(windows[4])
    keeper.save(windows[-1], complete=True)
    found = checkpoint.load(keeper.path)
    assert found.complete and found.window.x.tau == T and torch.equal(found.window.x.theta.flat, windows[-1].x.theta.flat)
    assert [path.name for path in tmp_path.iterdir()] == ["window.h5"]


def test_nothing_is_written_before_it_is_due(tmp_path):
    keeper = Keeper(tmp_path / "window.h5", "one", 0, "x: 1", every_s=3600)
    keeper.offer(next(slides("SGD", 0.0)))
    assert keeper.writing is None and not list(tmp_path.iterdir())


def test_a_write_that_failed_aside_is_told_at_the_next_slide(tmp_path):
    first, second, *_ = slides("SGD", 0.0)
    keeper = Keeper(tmp_path / "gone" / "window.h5", "one", 0, "x: 1", every_s=0)
    keeper.offer(first)
    assert isinstance(keeper.writing.exception(30), RunError)
    with pytest.raises(RunError, match="cannot write the checkpoint"):
        keeper.offer(second)
    with pytest.raises(RunError, match="cannot write the checkpoint"):
        keeper.save(second)
    (tmp_path / "gone").mkdir()
    keeper.save(second)  # room was made
    assert checkpoint.load(keeper.path).window.k == second.k


@pytest.mark.gpu
def test_windows_on_a_device_are_copied_as_they_were(tmp_path):
    window = next(slides("Adam", 0.0))
    moved = Window(type(window.x)(window.x.tau, Theta(window.x.theta.flat.cuda(), LAYOUT),
                                  {name: slot.cuda() for name, slot in window.x.slots.items()}),
                   tuple(Theta(theta.flat.cuda(), LAYOUT) for theta in window.guess), window.e, window.k)
    for name, one in (("cpu", window), ("cuda", moved)):
        keeper = Keeper(tmp_path / f"{name}.h5", "one", 0, "x: 1", every_s=0)
        keeper.offer(one)
        keeper.writing.result(30)
    assert held(tmp_path / "cpu.h5") == held(tmp_path / "cuda.h5")


def test_status_is_replaced_in_one_piece_and_seldom(tmp_path):
    log = Log(tmp_path)
    log.status("running one 1/9")
    log.status("running one 2/9", seldom=True)
    assert (tmp_path / "status").read_text() == "running one 1/9\n"
    log.status("done one 9/9")
    assert (tmp_path / "status").read_text() == "done one 9/9\n"
    assert {path.name for path in tmp_path.iterdir()} == {"run.log", "status"}


def test_every_line_of_the_log_has_time_and_rank(tmp_path):
    Log(tmp_path).note("Traceback:\n  one\n  two")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert len(lines) == 3 and all(line[:2] == "20" and " rank 0: " in line for line in lines)


def test_records_are_whole_lines_at_any_length(tmp_path):
    log = Log(tmp_path)
    for k in range(200):
        log.record(stage="one", k=k, errors=[math.pi] * 1000)
    assert [json.loads(line)["k"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(range(200))


def test_the_status_of_a_run_that_is_preempted(launch, tmp_path):
    process, folder = launch(0, "run", "toy", "stages.0.steps=2000", "--out", tmp_path / "run"), tmp_path / "run"
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert (folder / "status").read_text().startswith("running toy ")
    assert Path(f"/proc/{process.pid}/comm").read_text() == "mpiprop 0\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    tau = checkpoint.load(folder / "window.h5").window.x.tau
    assert (folder / "status").read_text().startswith(f"preempted toy {tau}/2000 T/K ")


def test_the_status_of_runs_that_are_done_and_failed(tmp_path):
    assert dispatch(["run", "toy", *SHORT, "--out", str(tmp_path / "done")]) == 0
    assert (tmp_path / "done" / "status").read_text().startswith("done toy 10/10 T/K ")
    assert dispatch(["run", "toy", "stages.0.terms.0.guidance.scale=1.0e+39", "--out", str(tmp_path / "failed")]) == 1
    assert (tmp_path / "failed" / "status").read_text().startswith("failed toy 0/120")


def test_tensorboard_gets_the_scalars_and_the_previews(monkeypatch, tmp_path):
    monkeypatch.setenv("MPIPROP_TENSORBOARD", "1")
    assert dispatch(["run", "toy", *SHORT, "preview.every_s=0.01", "--out", str(tmp_path)]) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard" / "toy")).Reload()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(event.step, event.value) for event in events.Scalars("stride")] == [(r["tau"], r["stride"]) for r in records]
    assert "sds" in events.Tags()["scalars"]
    assert len(events.Images("preview")) == len(list((tmp_path / "previews").iterdir())) > 0


def test_tensorboard_that_is_not_installed_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MPIPROP_TENSORBOARD", "1")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert dispatch(["run", "toy", *SHORT, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "pip install" in err and len(err.splitlines()) == 1
