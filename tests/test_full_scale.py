"""The configurations at the papers' scale: their numbers on a machine without weights, and whole runs on tiny random models."""

import math

import h5py
import pytest
import torch
from published import FULL_SCALE
from tiny_models import disc, make

from mpiprop.run import checkpoint
from mpiprop.config import loader
from mpiprop.run.program import main
from mpiprop.core import schedules
from mpiprop.core.streams import Streams
from mpiprop.run.stage import Stage

SMALL = ["stages.0.steps=2", "stages.0.terms.0.views.batch=2", "stages.0.terms.0.views.size=8", "stages.0.render.samples=32",
         "window.size=2", "preview.every_s=0", "turntable={frames: 2, size: 16}",
         "mesh={resolution: 8}"]


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage(loader.load("dreamfusion"), 0, torch.device("cpu"))


def test_dreamfusion_has_the_papers_parameters(stage):
    spans = stage.scene.layout.groups
    assert stage.scene.layout.D == 12_604_720
    assert spans["background.network"].stop - spans["background.network"].start == 448
    assert stage.scene.layout.L - stage.scene.layout.D == 32 ** 3  # the occupancy grid rides along
    assert stage.T == 10_000 and stage.config.window.size == 7
    assert stage.scene.renderer.ray_spacing(stage.scene.shape) == pytest.approx(0.01353125, rel=1e-6)


def test_dreamfusion_starts_as_a_blob(stage):
    """softplus(10 (1 - |x| / 0.5)) up to the 1e-4 of a fresh hash grid."""
    x = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0, 1.0]])
    assert stage.scene.shape.solid(x).tolist() == pytest.approx([math.log1p(math.exp(raw)) for raw in (10, 0, -10)], rel=2e-3)


@pytest.mark.parametrize("tau, levels", [(0, 8), (2499, 8), (2500, 9), (5999, 15), (6000, 16), (9999, 16)])
def test_progressive_band(stage, tau, levels):
    stage.scene.shape.at(tau)
    assert stage.scene.shape.encoding.active == levels


def test_schedules_of_dreamfusion():
    for name, scale, elevation in (("dreamfusion", 20, (-10, 90)), ("dreamfusion-sd", 100, (-10, 45))):
        run = loader.load(name)
        (term,) = run.stages[0].terms
        orient = term.penalties["orient"]
        assert [schedules.at(orient, tau) for tau in (0, 2500, 5000, 9999)] == [10, 505, 1000, 1000]
        assert schedules.at(term.penalties["sparsity"], 0) == 1
        guidance = term.guidance.keys
        assert guidance["scale"] == scale and guidance["weighting"] == "sds" and guidance["cfg"] == "A"
        assert (guidance["t_min"], guidance["t_max"]) == (0.02, 0.98)
        assert term.views.keys["elevation_deg"] == elevation and term.views.keys["batch"] == 16
        optimiser = run.stages[0].optimiser.keys
        assert optimiser["lr"] == {"geometry": 0.01, "background": 0.001} and optimiser["betas"] == (0.9, 0.99)
        assert optimiser["eps"] == 1e-15 and run.stages[0].material.keys["ambient_only_steps"] == 2001


def test_views_of_dreamfusion_cover_the_papers_ranges(stage):
    """The corrected elevation rule: half uniform in degrees (0.6 above 30 of [-10, 90]), half on the sphere (0.4260)."""
    views = [stage.views[0](tau, Streams(0, tau)) for tau in range(400)]
    elevation = torch.cat([view.elevation for view in views]).rad2deg()
    assert elevation.min() >= -10 and elevation.max() <= 90 and elevation.max() > 85
    assert float((elevation > 30).float().mean()) == pytest.approx((0.6 + 0.4260) / 2, abs=0.03)  # 3 sigma of 400 rules


@pytest.mark.parametrize("name, kind", [("dreamfusion", "if"), ("dreamfusion-sd", "sd"), ("dreamfusion-sd", "sd-v")])
def test_runs_end_to_end_on_tiny_models_of_the_same_classes(mpirun, tmp_path, name, kind):
    model = make(kind, tmp_path / "model")
    done = mpirun(0, "run", name, *SMALL, f"stages.0.terms.0.guidance.prior.model={model}",
                  "stages.0.terms.0.guidance.prior.variant=null", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "run" / "window.h5") as file:
        assert file.attrs["complete"] and file["x/flat"].shape == (12_604_720 + 32 ** 3,)
        assert bool(torch.from_numpy(file["x/flat"][()]).isfinite().all())


# Sources, by stage: configs/ of threestudio (commit 8d05955) magic3d-coarse-if, magic3d-coarse-sd, magic3d-refine-sd (twice),
# textmesh-if, prolificdreamer-geometry, prolificdreamer-texture .yaml. The batch, which is 1 there, is that of the files of the
# same names in DreamPropeller (commit d23f202).
PUBLISHED = {  # of each stage: steps, batch, pixels, field of view, guidance scale, weighting, t_max at its knots, penalties
    ("magic3d", 0): (10_000, 16, 64, (40, 70), 20, "uniform", (0.98, 0.98), {"orient": (10, 1000), "sparsity": (1, 1)}),
    ("magic3d-sd", 0): (10_000, 16, 64, (40, 70), 100, "uniform", (0.98, 0.98), {"orient": (10, 1000), "sparsity": (1, 1)}),
    ("magic3d", 1): (5_000, 16, 512, (30, 45), 100, "sds", (0.5, 0.5), {"normal_consistency": (10_000, 10_000)}),
    ("magic3d-sd", 1): (5_000, 16, 512, (30, 45), 100, "sds", (0.5, 0.5), {"normal_consistency": (10_000, 10_000)}),
    ("textmesh", 0): (10_000, 16, 64, (40, 70), 20, "sds", (0.98, 0.98), {"eikonal": (1000, 1000)}),
    ("prolificdreamer", 1): (15_000, 8, 512, (40, 70), 100, "sds", (0.98, 0.5),
                             {"normal_consistency": (10_000, 10_000), "laplacian": (10_000, 10_000)}),
    ("prolificdreamer", 2): (30_000, 1, 512, (40, 70), 7.5, "sds", (0.98, 0.5), {})}


@pytest.mark.parametrize("name, index", PUBLISHED)
def test_stages_have_the_published_numbers(name, index):
    """Schedules at step 0 and behind their last knot; ProlificDreamer's first stage is in test_vsd.py."""
    stage = loader.load(name).stages[index]
    (term,) = stage.terms
    views, guidance, optimiser = term.views.keys, term.guidance.keys, stage.optimiser.keys
    found = (stage.steps, views["batch"], views["size"], views["fovy_deg"], guidance["scale"], guidance["weighting"],
             (schedules.at(guidance["t_max"], 0), schedules.at(guidance["t_max"], 5001)),
             {penalty: (schedules.at(weight, 0), schedules.at(weight, 5001)) for penalty, weight in term.penalties.items()})
    assert found == PUBLISHED[name, index] and guidance["t_min"] == 0.02
    assert optimiser["betas"] == (0.9, 0.99) and optimiser["eps"] == 1e-15


TINY = {"HashGrid": {"log2_table": 10}, "SDF": {"log2_table": 10}, "DMTet": {"log2_table": 10, "resolution": 12},
        "Gaussians": {"number": 100, "opacity": 0.9, "densify_from": 0, "densify_every": 1, "densify_gradient": 0.001},
        "TexturedMesh": {"resolution": 12, "texture": 32, "threshold": 0.5}, "HashEnvironment": {"log2_table": 6},
        "HyperINGP": {"log2_table": 10, "text_width": 16}, "HyperEnvironment": {"text_width": 16},
        "Conv3D": {"channels": 8, "resolution": 8, "text_width": 16},
        "Triplane": {"layers": 1, "width": 16, "heads": 2, "side": 4, "text_width": 16}}


@pytest.mark.parametrize("name", sorted({*FULL_SCALE} - {"dreamfusion", "dreamfusion-sd"}))  # which are above
def test_systems_run_through_all_stages_on_tiny_models_of_the_same_classes(tmp_path, name):
    """Two steps of each stage, hand-over included, with small grids, lattices and pictures: all else is the papers'."""
    keys = {"window.size": 2, "preview.every_s": 0, "turntable": "{frames: 1, size: 8}", "mesh": "{resolution: 8, texture: 16}"}
    run = loader.load(name)
    if run.prompts_ is not None:
        keys["prompts"] = "[a red chair, a blue car]"
    if not run.reads_prompt:
        keys["image"] = disc(tmp_path / "disc.png")
    for i, stage in enumerate(run.stages):
        term, of = f"stages.{i}.terms.0.", stage.terms[0].guidance.part("prior").use
        kind = {"DeepFloyd": "if", "Zero123": "zero123", "MVDream": "mvdream"}.get(of, "sd")
        if not (folder := tmp_path / kind).exists():
            make(kind, folder)
        keys |= {f"stages.{i}.steps": 2, f"{term}guidance.prior.model": folder, f"{term}guidance.prior.variant": "null",
                 f"{term}views.batch": 4 if kind == "mvdream" else 1, f"{term}views.size": 8}
        for part, use in (("shape", stage.shape.use), ("background", stage.background.use)):
            keys |= {f"stages.{i}.{part}.{key}": value for key, value in TINY.get(use, {}).items()}
        variates = stage.terms[0].guidance.keys.get("variates")
        for network, of_kind in (("estimator", "dpt"), ("decoder", "taesd")) if variates else ():
            if not (folder := tmp_path / network).exists():
                make(of_kind, folder)
            keys[f"{term}guidance.variates.{network}.model"] = folder
        if stage.shape.keys.get("threshold") == 25.0:  # more than the first blob has, or two steps add
            keys[f"stages.{i}.shape.threshold"] = "auto"
        if stage.render.use == "Volume":
            keys[f"stages.{i}.render.samples"] = 32
        if len(stage.terms) > 1:
            keys[f"stages.{i}.terms.1.views.size"] = 16
    assert main(name, [f"{key}={value}" for key, value in keys.items()], tmp_path / "run", False) == 0
    found = checkpoint.load(tmp_path / "run" / "window.h5")
    assert found.stage == run.stages[-1].name and found.window.x.theta.flat.isfinite().all()
    names = [line.split(",")[0] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(names)) == [f'{{"stage": "{stage.name}"' for stage in run.stages]
    assert (tmp_path / "run" / "mesh.glb").exists() and (tmp_path / "run" / "done").exists()
    assert (tmp_path / "run" / "cloud.ply").exists() == (run.stages[0].shape.use == "Gaussians")
