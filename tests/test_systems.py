"""Every stage of the demo's systems, made tiny: with threshold 0 the bits of the sequential method, on any number of ranks,
and when stopped after every other slide and gone on with, inside stages and between them."""

import json
from pathlib import Path

import pytest
import tiny_models
from stopped import MPI, ended, follow

from mpiprop.config import loader
from mpiprop.run import checkpoint

SYSTEMS = ("demo/magic3d", "demo/textmesh", "demo/prolificdreamer", "demo/dreamgaussian", "demo/dreamgaussian-image",
           "demo/zero123", "demo/zero123-gaussians")
STEPS = 4
GRID = {"levels": 3, "log2_table": 8, "hidden": 8}
SIZES = {"DMTet": GRID | {"resolution": 10},
         "HashGrid": GRID | {"occupancy_resolution": 8, "start_level": 2},
         "SDF": GRID | {"occupancy_resolution": 8, "start_level": 2},
         "Gaussians": {"number": 60, "opacity": 0.9, "densify_from": 0, "densify_every": 2,
                       "densify_gradient": 1.0e-3},  # changes within a window
         "TexturedMesh": {"resolution": 10, "texture": 16, "threshold": 0.3}}
SCHEDULES = {"batch": [[0, 2], [2, 1]], "size": [[0, 8], [3, 12]]}  # both change within a window
LORAS = {0: {"loras": 2, "average_every": 2}, 2: {"loras": 3}}  # of ProlificDreamer's stages


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with tiny models of both kinds, and a picture."""
    folder = tmp_path_factory.mktemp("model")
    for kind in ("sd", "zero123"):
        tiny_models.make(kind, folder / kind)
    tiny_models.disc(folder / "disc.png")
    return folder


def small(name: str, model: Path, *more: str) -> list[str]:
    """Overrides that bring a system down to seconds."""
    tree = loader.read(name)
    keys = {"preview.every_s": 0, "turntable": {"frames": 1, "size": 8}, "mesh": {"resolution": 8, "texture": 16}}
    for i, stage in enumerate(tree["stages"]):
        at = f"stages.{i}."
        kind = "zero123" if "Zero123" in stage["terms"][0]["guidance"]["prior"]["use"] else "sd"
        keys |= {f"{at}steps": STEPS, f"{at}terms.0.guidance.prior.model": str(model / kind)}
        keys |= {f"{at}shape.{key}": value for key, value in SIZES[stage["shape"]["use"]].items()}
        keys |= {f"{at}terms.0.views.{key}": value for key, value in SCHEDULES.items()}
        if "Volume" in stage["render"]["use"]:
            keys[f"{at}render.samples"] = 24
        if "lora" in stage["terms"][0]["guidance"]:
            keys |= {f"{at}terms.0.guidance.lora.{key}": value for key, value in LORAS[i].items()}
        if len(stage["terms"]) > 1:
            keys[f"{at}terms.1.views.size"] = [[0, 8], [3, 12]]
    subject = f"image={model / 'disc.png'}" if "reference" in tree else "prompt=a red mushroom"
    return [subject, *(f"{key}={json.dumps(value)}" for key, value in keys.items()), *more]


@pytest.fixture(scope="module")
def sequential(model, tmp_path_factory) -> dict[str, tuple[bool, str, bytes]]:
    """How each system ends, one step after the other."""
    found, folder = {}, tmp_path_factory.mktemp("sequential")
    for i, name in enumerate(SYSTEMS):
        assert follow(name, small(name, model, "window.size=1"), folder / str(i), False)
        found[name] = ended(folder / str(i))
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_stopped_after_every_other_slide_and_gone_on_with_it_ends_with_the_bits_of_the_sequential_method(
        name, model, sequential, tmp_path):
    stops, overrides = [], small(name, model, "window.threshold=0", "window.size=3")
    while not follow(name, overrides, tmp_path / "run", True):
        found = checkpoint.load(tmp_path / "run" / "window.h5")
        stops.append((found.stage, found.window.x.tau))
    assert ended(tmp_path / "run") == sequential[name]
    assert {name for name, tau in stops if tau < STEPS} == {stage["name"] for stage in loader.read(name)["stages"]}
    assert {name for name, tau in stops if tau == STEPS} >= {stage["name"] for stage in loader.read(name)["stages"][:-1]}


@pytest.mark.mpi
def test_begun_alone_and_gone_on_with_on_three_ranks_all_systems_end_with_the_bits_of_the_sequential_method(
        model, sequential, mpirun, tmp_path):
    runs = [(name, small(name, model, "window.threshold=0", "window.size=3"), tmp_path / str(i))
            for i, name in enumerate(SYSTEMS)]
    assert not any(follow(*run, True) for run in runs)
    done = mpirun(3, json.dumps(runs, default=str), program=("-c", MPI), timeout=400)
    assert done.returncode == 0, done.stderr
    for name, _, folder in runs:
        assert ended(folder) == sequential[name] and (folder / "mesh.glb").exists()
