"""Surfaces in a scene, and stages that follow one another: what a mesh of a sphere looks like; a field becomes a mesh
within one run and from another run with the same bits (test_systems.py: on ranks, and stopped)."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from finished import flat

from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.core.theta import Theta
from mpiprop.run.stage import Stage
from mpiprop.render.mesh import Mesh
from mpiprop.objective.scene import Scene
from mpiprop.appearance.backgrounds import Solid
from mpiprop.shapes.surfaces.dmtet import DMTet
from mpiprop.appearance.materials import NoMaterial, Normals
from mpiprop.shapes.fields.sdf import SDF
from mpiprop.views.cameras import turntable

INIT = Streams(0, 0).of("init")
SMALL = {"levels": 3, "log2_table": 10, "base_resolution": 4, "hidden": 16}
DISTANCE, RADIUS = 2.0, 0.6


@pytest.fixture(scope="module")
def ball():
    """A sphere of radius 0.6 on black, as its normals."""
    shape = DMTet(INIT, radius=1.0, resolution=64, sphere=RADIUS, textured=False)
    return Scene(shape, Normals(), Solid(INIT, colour=(0.0, 0.0, 0.0)), Mesh())


def test_a_sphere_covers_its_disc_and_shows_its_normals(ball):
    """The silhouette of a sphere at distance d spans the angle asin(r / d); at its middle it faces the camera."""
    fovy, size = math.radians(50), 128
    views = turntable(3, 0.3, DISTANCE, fovy, (size, size))
    image = ball.render(views, 0)
    edge = math.tan(math.asin(RADIUS / DISTANCE)) / math.tan(fovy / 2) * size / 2  # pixels
    assert image.opacity.sum((1, 2, 3)).tolist() == pytest.approx([math.pi * edge ** 2] * 3, rel=0.01)
    middle = image.rgb[:, size // 2 - 1:size // 2 + 1, size // 2 - 1:size // 2 + 1].mean((1, 2))
    towards = torch.nn.functional.normalize(views.c2w[:, :3, 3], dim=-1)
    assert torch.allclose(2 * middle - 1, towards, atol=0.03)
    assert torch.allclose(image.depth[:, size // 2, size // 2, 0], torch.tensor(DISTANCE - RADIUS), atol=0.01)
    assert image.rgb[:, 0].abs().max() == 0  # the background


def test_a_larger_silhouette_pulls_the_distances_outwards(ball):
    """The gradient of the coverage grows the ball: it lowers signed distances, by what finite differences say."""
    views = turntable(2, 0.3, DISTANCE, math.radians(50), (48, 48))
    theta = ball.theta()

    def coverage(shift: float) -> torch.Tensor:
        flat = theta.flat.clone()
        (entry,) = (entry for entry in theta.layout.entries if entry.name == "geometry.sdf")
        flat[entry.span] -= shift
        ball.load(Theta(flat, theta.layout), 0).grad.zero_()
        return ball.render(views, 0, INIT).opacity.mean()
    coverage(0.0).backward()
    (entry,) = (entry for entry in theta.layout.entries if entry.name == "geometry.sdf")
    analytic = -ball.grad[entry.span].sum().item()
    with torch.no_grad():
        numeric = (coverage(2e-3) - coverage(-2e-3)).item() / 4e-3
    assert analytic == pytest.approx(numeric, rel=0.1) and numeric > 0


def test_a_mesh_begins_with_the_surface_of_a_distance():
    field = SDF(INIT, radius=1.0, sphere=0.5, **SMALL)
    mesh = DMTet(INIT, radius=1.0, resolution=48, inherit_texture=False, **SMALL)
    mesh.begin_with(field)
    vertices, _ = mesh.surface()
    assert field.distance(vertices).abs().max() < 0.01


def test_a_stage_that_cannot_begin_with_the_one_before_says_so():
    with pytest.raises(UserError, match="laid out otherwise"):
        SDF(INIT, **SMALL).begin_with(DMTet(INIT, resolution=16, **SMALL))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The toy's field, then a mesh of it."""
    tree = yaml.safe_load((Path(__file__).parents[1] / "configs" / "toy.yaml").read_text())
    (field,) = tree["stages"]
    field |= {"name": "field", "steps": 30}
    texture = {key: field["shape"][key] for key in ("levels", "log2_table", "base_resolution", "growth", "hidden", "radius")}
    mesh = field | {"name": "mesh", "steps": 12, "shape": {"use": "DMTet", "resolution": 24, **texture},
                    "render": {"use": "Mesh"}}
    mesh["terms"] = [field["terms"][0] | {"penalties": {"normal_consistency": 1.0, "laplacian": 1.0}}]
    tree |= {"stages": [field, mesh], "turntable": {"frames": 2, "size": 16}, "mesh": {"faces": 200, "texture": 32}}
    path = tmp_path_factory.mktemp("two") / "two.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(*words: object, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "mpiprop", "run", *map(str, words)], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sequential(two) -> bytes:
    run(two, "window.size=1", "--out", two.parent / "sequential")
    return flat(two.parent / "sequential", "mesh")


def test_a_stage_can_begin_with_another_run(two, sequential):
    """The second stage alone, from a run that ended with the first, gives the bits of both in one run."""
    tree = yaml.safe_load(two.read_text())
    for name, stages in (("first", tree["stages"][:1]), ("second", tree["stages"][1:])):
        (two.parent / f"{name}.yaml").write_text(yaml.safe_dump(tree | {"stages": stages}))
    run(two.parent / "first.yaml", "window.size=1", "--out", two.parent / "first")
    out = run(two.parent / "second.yaml", "window.size=1", f"from={two.parent / 'first'}", "--out", two.parent / "second")
    assert "stage mesh begins with stage field" in out
    assert flat(two.parent / "second", "mesh") == sequential
    assert "from=nowhere" in run(two, "from=nowhere", "--out", two.parent / "none", code=2)


def test_textmesh_has_the_published_dimension():
    stage = Stage(loader.load("textmesh"), 0, torch.device("cpu"))
    assert stage.scene.layout.D == 12_201_041
    assert {name: span.stop - span.start for name, span in stage.scene.layout.groups.items()}["geometry.encoding"] == 12_196_240
    assert stage.scene.shape.sharpness().item() == pytest.approx(20.0855, rel=1e-4)
    rates = dict(stage.rollout().optimiser.rates(0))
    assert rates == {"geometry.encoding": 0.01} | dict.fromkeys(
        ("geometry.sdf_network", "geometry.feature_network", "geometry.sharpness", "background.network"), 0.001)


@pytest.mark.parametrize("name", ["magic3d", "magic3d-sd"])
def test_magic3d_refines_what_its_field_trained(name):
    coarse, refine = (Stage(loader.load(name), index, torch.device("cpu")) for index in (0, 1))
    assert coarse.scene.layout.D == 12_604_720
    groups = {group: span.stop - span.start for group, span in refine.scene.layout.groups.items()}
    V = len(refine.scene.shape.vertices)
    assert V == pytest.approx(277_410, rel=0.02) and groups["geometry.sdf"] == V and groups["geometry.deformation"] == 3 * V
    assert groups["geometry.encoding"] == 12_599_920
    assert refine.rollout().optimiser.rates(0) == [(group, 0.01) for group in groups]


def test_prolificdreamer_fixes_its_geometry_for_the_texture():
    local = [f"stages.{i}.terms.0.guidance.prior.{key}" for i in range(3) for key in ("model=builtin", "variant=null")]
    stages = [Stage(loader.load("prolificdreamer", local), index, torch.device("cpu")) for index in range(3)]
    assert [stage.name for stage in stages] == ["coarse", "geometry", "texture"]
    V = len(stages[1].scene.shape.vertices)
    assert stages[1].scene.layout.D == 4 * V
    names = {entry.name: entry.group for entry in stages[2].scene.layout.entries}
    assert names["geometry.sdf"] == names["geometry.deformation"] == ""  # ride along, untrained
    assert isinstance(stages[2].scene.material, NoMaterial)
