"""What a run leaves at its end, and what it tells on the way."""

import json
import math
from pathlib import Path

import pytest
import torch

from mpiprop.config import loader
from mpiprop.run import outputs
from mpiprop.run.stage import Stage
from mpiprop.run.progress import eta


@pytest.fixture
def stage() -> Stage:
    """Gaussians, seen from a distance of 2.1 with a field of view of 50 degrees, 15 degrees above."""
    return Stage(loader.load("demo/dreamgaussian", ["stages.0.shape.number=400"]), 0, torch.device("cpu"))


@pytest.mark.parametrize("height", [0.3, 0.8, 0.9, 1.1, 5.0])
def test_cameras_move_back_until_all_of_the_object_is_seen(stage: Stage, height: float) -> None:
    """A thin pole on the axis: its top, nearer to the cameras than its foot, decides in closed form."""
    theta = stage.scene.theta()
    stage.scene.load(theta, 0)
    shape = stage.scene.shape
    with torch.no_grad():
        shape.position.zero_()[:, 2] = torch.linspace(-height, height, 400)
        shape.scale.fill_(math.log(0.02))
        shape.opacity.fill_(6.0)
    elevation, fovy, distance = math.radians(15), math.radians(50), 2.1
    edge = math.tan(fovy / 2) * (1 - 1 / outputs.PROBE)  # the middle of the last pixels

    def fits(factor: float) -> bool:
        return height * math.cos(elevation) / (distance * factor - height * math.sin(elevation)) < edge
    fitting = [factor for factor in outputs.FARTHER if fits(factor) and factor * distance > height]
    assert outputs.farther(stage, theta, 3) == (fitting or [outputs.FARTHER[-1]])[0]
    views = stage.views[0].turntable(3, (8, 8)).farther(1.5)
    torch.testing.assert_close(views.c2w[:, :3, 3].norm(dim=-1), torch.full((3,), 1.5 * distance))


def test_cameras_inside_a_scene_stay_where_they_are() -> None:
    """A box full of matter fills every picture from anywhere, also from farther away."""
    run = loader.load("demo/prolificdreamer-scene", ["stages.0.shape.blob_scale=100", "stages.0.shape.blob_std=100"])
    stage = Stage(run, 0, torch.device("cpu"))
    theta = stage.scene.theta()
    stage.scene.load(theta, 0)
    view = stage.views[0].turntable(1, (8, 8))
    assert stage.scene.render(view.farther(2.0), 0, needs=()).opacity.min() > 0.9
    assert outputs.farther(stage, theta, 1) == 1


def test_the_time_left_is_that_of_recent_slides_without_the_start() -> None:
    """One minute for the models, then five steps a second."""
    slides = [(60.0 + i, 1 + 5 * i) for i in range(30)]
    assert eta(slides[:1], 1000) == eta(slides[:3], 1000) == eta([], 1000) == ""
    assert eta(slides, 1000) == "ETA 2:50" and eta(slides, 100_000) == "ETA 5:32:50"
    assert eta(slides[:4], 16) == "ETA 0:00"


def test_a_run_says_what_it_made(mpirun, tmp_path: Path) -> None:
    """The toy's object has no prompt that the judge knows: its mesh alone, and the same in results.json."""
    done = mpirun(0, "run", "toy", "stages.0.steps=12", "--out", tmp_path / "run")
    made = json.loads((tmp_path / "run" / "results.json").read_text())
    closed = "closed" if made["open_edges"] == 0 else f"with {made['open_edges']:,} open edge"
    assert done.returncode == 0 and f"mesh.glb: {made['faces']:,} faces, {closed}" in done.stdout
    assert made["faces"] > 0 and made["gaussians"] is made["psnr_db"] is made["judged"] is None
