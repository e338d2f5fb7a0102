"""Meshes with a texture that trains: painted from renders, differentiated, exported as they are, and handed from stage to stage
with the same bits, however many ranks there are and wherever the run was stopped."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import yaml
from finished import flat
from torch import nn

from mpiprop.config import loader
from mpiprop.run import transition
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Layout, Theta
from mpiprop.io import files
from mpiprop.io.mesh import extract, finish, iso_surface
from mpiprop.run.stage import Stage
from mpiprop.render.mesh import Mesh
from mpiprop.render.projection import all_around, project
from mpiprop.render.splat import Splat
from mpiprop.render.volume import Volume
from mpiprop.objective.scene import Scene
from mpiprop.appearance.backgrounds import Solid
from mpiprop.shapes.fields.base import Field, Values
from mpiprop.shapes.clouds.gaussians import Gaussians
from mpiprop.geometry.harmonics import C0
from mpiprop.appearance.materials import NoMaterial
from mpiprop.shapes.surfaces.textured import TexturedMesh
from mpiprop.views.cameras import turntable

INIT = Streams(0, 0).of("init")
RADIUS, DISTANCE, FOVY = 0.5, 2.0, math.radians(45)


def paint(x: torch.Tensor) -> torch.Tensor:
    """Colours [N, 3] in [0.1, 0.9] that change over some tenths of the world."""
    return 0.5 + 0.4 * torch.sin(7 * x.roll(1, -1) + 3 * x)


class Ball(Field):
    """A ball in those colours."""

    radius, has_normals, level = 0.8, False, None

    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor([100.0]))

    def density(self, x):
        return 200 * torch.sigmoid(self.steepness * (RADIUS - x.norm(dim=-1)))

    def probe(self, x, normals, along=None):
        return self.density(x), lambda which: Values(self.density(x[which]), torch.logit(paint(x[which])), None)


def ball_of_gaussians() -> Gaussians:
    """2000 Gaussians just below the sphere in its colours."""
    shape = Gaussians(INIT, radius=0.8, number=2000)
    x = torch.nn.functional.normalize(normal(INIT("gaussians"), 2000, 3), dim=-1)
    values = {"position": 0.92 * RADIUS * x, "f_dc": ((paint(RADIUS * x) - 0.5) / C0)[:, None],
              "scale": torch.full((2000, 3), 0.04).log(), "opacity": torch.full((2000, 1), 2.0)}
    for name, value in values.items():
        getattr(shape, name).data = value
    return shape


def scene_of(shape, renderer) -> Scene:
    return Scene(shape, NoMaterial(), Solid(INIT, colour=(1.0, 1.0, 1.0)), renderer)


def textured(before: Scene, **keys: object) -> Scene:
    """The scene of a textured mesh that began with `before`."""
    scene = scene_of(TexturedMesh(INIT, **{"texture": 128, "resolution": 24, "faces": 0} | keys), Mesh())
    transition.begin(scene, before, 0, turntable(1, 0.0, DISTANCE, FOVY, (1, 1)), lambda text: None)
    return scene.load(scene.theta(), 0)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().item())


@pytest.fixture(scope="module")
def ball() -> Scene:
    """A mesh of the ball with its colours baked at the texels' places in space."""
    return textured(scene_of(Ball(), Volume(samples=64)))


def disc(views) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [B, H, W, 3] of a sphere in those colours on black, and what it covers [B, H, W, 1], ray by ray."""
    origins, directions = views.rays()
    along = -(origins * directions).sum(-1, keepdim=True)
    inside = RADIUS ** 2 - (origins.square().sum(-1, keepdim=True) - along.square())
    x = origins + (along - inside.clamp(min=0).sqrt()) * directions
    return paint(x) * (inside > 0), (inside > 0).float()


def test_points_take_the_colours_of_pictures_that_see_them():
    """Of a sphere among 26 views nothing is hidden; behind a second, larger one everything is."""
    mesh = iso_surface(lambda x: RADIUS - x.norm(dim=-1) + 1, 0.8, 24, 1.0, say=lambda text: None)
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces).long()
    normals = torch.nn.functional.normalize(normal(INIT("points"), 4000, 3), dim=-1)
    views = all_around(DISTANCE, FOVY, 64)
    assert len(views) == 26
    colours, found = project(RADIUS * normals, normals, vertices, faces, views, *disc(views))
    assert found.all() and psnr(colours, paint(RADIUS * normals)) > 35
    shell = torch.cat([vertices, 1.5 * vertices]), torch.cat([faces, faces + len(vertices)])
    _, found = project(RADIUS * normals, normals, *shell, views, *disc(views))
    assert not found.any()
    front = views[:1]
    colours, found = project(RADIUS * normals, normals, vertices, faces, front, *disc(front))
    towards = torch.nn.functional.normalize(front.c2w[0, :3, 3] - RADIUS * normals, dim=-1)
    assert torch.equal(found, (normals * towards).sum(-1) > 0.5)


@pytest.mark.parametrize("cloud", [False, True])
def test_a_texture_begins_with_the_colours_of_the_stage_before(cloud, ball):
    """Baked at places in space, or painted from renders of Gaussians: both look like the sphere, as these do (25.6 dB)."""
    scene = textured(scene_of(ball_of_gaussians(), Splat()), texture=96, threshold=1.0) if cloud else ball
    views = turntable(3, 0.4, DISTANCE, FOVY, (96, 96))
    image, (truth, covered) = scene.render(views, 0), disc(views)
    inner = (torch.nn.functional.avg_pool2d(covered[..., 0], 5, 1, 2) == 1) & (image.opacity[..., 0] == 1)
    assert inner.float().mean() > 0.15 and psnr(image.rgb[inner], truth[inner]) > (24 if cloud else 28)


@pytest.mark.parametrize("supersampling", [1, 2])
def test_gradients_of_the_texture_and_of_offsets_are_finite_differences(supersampling):
    mesh = textured(scene_of(Ball(), Volume()), texture=32, resolution=12, faces=0, offsets=True).shape
    scene = scene_of(mesh, Mesh(supersampling=supersampling))
    views, theta = turntable(2, 0.3, DISTANCE, FOVY, (24, 24)), scene.theta()
    weights = normal(INIT("weights"), 2, 24, 24, 3)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return (scene.load(Theta(flat, theta.layout), 0).render(views, 0).rgb.double() * weights).sum()

    loss(theta.flat.clone()).backward()
    grad, spans = scene.grad.clone(), theta.layout.groups
    assert set(spans) == {"geometry.texture", "geometry.offsets"}
    way = torch.zeros_like(theta.flat)
    way[spans["geometry.texture"]] = normal(INIT("way"), 32 * 32 * 3)
    with torch.no_grad():
        numeric = (loss(theta.flat + 1e-2 * way) - loss(theta.flat - 1e-2 * way)).item() / 2e-2
    assert (grad * way[:theta.layout.D]).sum().item() == pytest.approx(numeric, rel=2e-3)
    assert grad[spans["geometry.offsets"]].abs().max() > 0


def test_a_mesh_is_exported_with_its_own_atlas_and_texture(ball, tmp_path):
    mesh = extract(ball, faces=10, texture=16, say=lambda text: None)
    files.write(mesh, tmp_path / "mesh.glb")
    (read,) = trimesh.load(tmp_path / "mesh.glb").geometry.values()
    skin = ball.shape.skin()
    albedo = ball.texture(skin)
    picture = np.asarray(read.visual.material.baseColorTexture.convert("RGB"), np.float32) / 255
    assert np.abs(picture - albedo.numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(read.faces, skin.corners.numpy())
    assert np.allclose(read.visual.uv * (1, -1) + (0, 1), skin.uv.numpy(), atol=1e-6)
    assert mesh.open_edges == 0
    assert psnr(torch.from_numpy(mesh.colours), paint(torch.from_numpy(mesh.vertices))) > 25
    again = textured(ball, texture=128)
    assert torch.equal(again.shape.uv, ball.shape.uv) and torch.equal(again.shape.faces, ball.shape.faces)
    assert torch.allclose(again.shape.texture, ball.shape.texture, atol=1e-4)
    with pytest.raises(UserError, match="of 64 texels a side cannot begin with one of 128"):
        textured(ball, texture=64)
    assert finish(mesh, paint, height_m=2.0, say=lambda text: None).vertices[:, 2].max() == pytest.approx(2.0)


def test_a_layout_admits_sizes_that_were_open():
    def layout(V: int, S: int = 4) -> Layout:
        return Layout.of([("texture", (S, S, 3), "texture")], [("vertices", (V, 3))])
    assert layout(0).admits(layout(7)) and layout(0).admits(layout(0)) and layout(7).admits(layout(7))
    assert not layout(7).admits(layout(8)) and not layout(0).admits(layout(7, 5)) and not layout(7).admits(layout(0))
    assert not layout(0).admits(Layout.of([("texture", (4, 4, 3), "texture")]))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The toy's field, then its mesh whose texture is refined."""
    tree = yaml.safe_load((Path(__file__).parents[1] / "configs" / "toy.yaml").read_text())
    (field,) = tree["stages"]
    term, guidance = field["terms"][0], field["terms"][0]["guidance"]
    refine = {key: guidance[key] for key in ("prior", "prompts")} | {
        "use": "Refine", "scale": 2.0, "steps": 10, "strength": [[0, 0.7], [40, 0.9]]}
    field |= {"name": "field", "steps": 20}
    mesh = field | {"name": "texture", "steps": 40, "render": {"use": "Mesh", "supersampling": 2},
                    "shape": {"use": "TexturedMesh", "texture": 48, "resolution": 24, "faces": 400},
                    "background": {"use": "Solid"},
                    "terms": [{"name": "refine", "views": term["views"], "guidance": refine}],
                    "optimiser": {"use": "Adam", "lr": 0.1}}
    tree |= {"stages": [field, mesh], "turntable": {"frames": 1, "size": 16}}
    path = tmp_path_factory.mktemp("two") / "two.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.mpi
def test_a_texture_has_the_same_bits_over_ranks_and_resumes(two, mpirun, launch):
    """A window of 7 at threshold 0, begun on three ranks, stopped while the texture trains and resumed on two, which get the
    mesh from the checkpoint, is the sequential run."""
    folder, alone = two.parent / "three", two.parent / "alone"
    process = launch(3, "run", two, "window.threshold=0", "--out", folder)
    told, end = folder / "metrics.jsonl", time.monotonic() + 100
    while not told.exists() or '"texture"' not in told.read_text():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.005)
    (folder / "stop").touch()
    process.communicate(timeout=100)
    assert process.returncode == 75
    done = mpirun(2, "run", two, "window.threshold=0", "--out", folder, "--resume")
    assert done.returncode == 0 and "resumed" in done.stdout and "begins with" not in done.stdout, done.stderr
    done = mpirun(0, "run", two, "window.size=1", "--out", alone)
    assert done.returncode == 0, done.stderr
    assert flat(alone, "texture") == flat(folder, "texture")


def test_a_texture_needs_a_stage_before_it(two, mpirun):
    tree = yaml.safe_load(two.read_text())
    (two.parent / "alone.yaml").write_text(yaml.safe_dump(tree | {"stages": tree["stages"][1:]}))
    done = mpirun(0, "run", two.parent / "alone.yaml", "--out", two.parent / "none")
    assert done.returncode == 2 and "from=RUN" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(UserError, match="texture 1"):
        Stage(loader.load(str(two), ["stages.1.shape.texture=1"]), 1, torch.device("cpu"))
