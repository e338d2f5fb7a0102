"""What is told of a stage while it runs, and what a plan is made of, from stages that take no step."""

import json
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from PIL import Image

from mpiprop.cli import forecast
from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.core.theta import State
from mpiprop.picard.window import Window
from mpiprop.planning.laws import Choice
from mpiprop.run import outputs
from mpiprop.run.log import Log
from mpiprop.run.progress import Reporter
from mpiprop.run.stage import Stage
from mpiprop.transport.serial import Serial

SMALL = ["preview={every_s: 3600, size: 16, views: 3}", "stages.0.steps=40"]


@pytest.fixture
def stage() -> Stage:
    return Stage(loader.load("toy", SMALL), 0, torch.device("cpu"))


@pytest.fixture
def reporter(stage: Stage, tmp_path: Path) -> Reporter:
    found = Reporter(stage.run, stage, tmp_path, Log(tmp_path))
    found.begin(Window(State(0, stage.scene.theta()), (), 1e-3))
    return found


def after(window: Window, stride: int, *losses: float) -> Window:
    return replace(window, x=replace(window.x, tau=window.x.tau + stride), k=window.k + 1, stride=stride,
                   errors=(1e-5, 3e-3), scalars=tuple({"sds": loss} for loss in losses))


def test_a_slide_is_recorded_with_its_parts(reporter: Reporter, tmp_path: Path) -> None:
    """Rollout and evaluations take their own time, the rest is communication, previews are not counted; losses are means."""
    transport = Serial(lambda theta, tau: None, lambda: False)
    with reporter.timed("rollout"):
        sleep(0.05)
    with reporter.timed("preview"):
        sleep(0.2)
    sleep(0.02)
    began = reporter.clock
    transport.busy.spans += [(began + 0.01, began + 0.03), (began + 0.015, began + 0.025)]  # the time of both counts once
    reporter.slide(after(reporter.window, 2, 1.0, 3.0), transport)
    with reporter.timed("checkpoint"):
        sleep(0.03)
    reporter.slide(after(reporter.window, 3, 5.0), transport)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["stage"], first["tau"], first["k"], first["stride"], first["ranks"]) == ("toy", 2, 1, 2, 1)
    assert (first["errors"], first["e"], first["sds"], first["evaluations"]) == ([1e-5, 3e-3], 1e-3, 2.0, 2)
    assert first["evaluate_s"] == pytest.approx(0.02, rel=1e-6) and first["checkpoint_s"] == 0 and first["rollout_s"] >= 0.05
    assert first["seconds"] == pytest.approx(first["rollout_s"] + first["evaluate_s"] + first["transport_s"])
    assert (second["tau"], second["k"], second["sds"], second["rollout_s"]) == (5, 2, 5.0, 0) and second["checkpoint_s"] >= 0.03


def test_the_status_is_one_line(reporter: Reporter, tmp_path: Path) -> None:
    assert (tmp_path / "status").read_text() == "running toy 0/40 T/K 0.0\n"
    reporter.slide(after(reporter.window, 6, 1.0), Serial(lambda theta, tau: None, lambda: False))
    reporter.state("preempted")
    assert (tmp_path / "status").read_text() == "preempted toy 6/40 T/K 6.0\n"


def test_the_end_of_a_stage_is_always_shown(reporter: Reporter, tmp_path: Path) -> None:
    """The others only when one is due: none within an hour here."""
    reporter.show(after(reporter.window, 6))
    assert not (tmp_path / "previews").exists()
    reporter.show(after(reporter.window, 40))
    (path,) = (tmp_path / "previews").iterdir()
    assert path.name == "toy-000040.png" and np.array(Image.open(path)).shape == (16, 48, 3)


def test_white_takes_the_place_of_the_background(stage: Stage) -> None:
    """The toy's background is learned; the same scene before a white one is what `white` shows."""
    theta, views = stage.scene.theta(), stage.views[0].turntable(2, (12, 12))
    shown = outputs.frames(stage, theta, views, white=True)
    white = Stage(loader.load("toy", ["stages.0.background={use: Solid, colour: [1, 1, 1]}"]), 0, torch.device("cpu"))
    expected = outputs.frames(white, white.scene.theta(), views)
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)
    assert (outputs.frames(stage, theta, views) - shown).abs().max() > 0.1


def test_what_a_stage_has_to_do(stage: Stage) -> None:
    """Numbers, views and moments as the configuration has them."""
    work, layout = forecast.work_of(stage), stage.scene.theta().layout
    assert (work.name, work.T, work.batches, work.slots) == ("toy", 40, (2,), 2)
    assert (work.D, work.L) == (sum(p.numel() for p in (*stage.scene.shape.parameters(), *stage.scene.background.parameters())),
                                layout.L)


def test_the_command_sets_each_stage_that_differs() -> None:
    def choice(size: int, shards: int) -> Choice:
        return Choice(1 + size * shards, size, shards, ratio=1.0, seconds=1.0, speedup=1.0, evaluate=1.0, rollout=0.0,
                      transport=0.0, root_bytes=0, worker_bytes=0, root_bytes_per_s=0.0)
    alike = forecast.command_line("demo/magic3d", ["seed=3"], [choice(7, 1), choice(7, 1)])
    assert alike == "mpirun -n 8 python -m mpiprop run demo/magic3d seed=3 window.size=7 window.shards=1"
    mixed = forecast.command_line("demo/magic3d", [], [choice(3, 2), choice(1, 1)])
    assert mixed.split()[8:] == ["stages.0.window.size=3", "stages.0.window.shards=2", "stages.1.window.size=1",
                                 "stages.1.window.shards=1"]


def test_a_run_without_a_checkpoint_has_no_newest_state(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(loader.resolved(loader.load("toy", [])))
    with pytest.raises(UserError, match="has no checkpoint"):
        outputs.newest(tmp_path)
