"""Exported surfaces against closed forms, and files against other programs' readers."""

import errno
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor

from mpiprop.appearance.backgrounds import NeuralEnvironment
from mpiprop.appearance.materials import NoMaterial
from mpiprop.core.errors import RunError, UserError
from mpiprop.core.streams import Streams
from mpiprop.io import files, pictures
from mpiprop.io.mesh import Mesh, coloured, decimated, extract, finish, iso_surface, without_crumbs
from mpiprop.objective.scene import Scene
from mpiprop.render.volume import Volume
from mpiprop.shapes.fields.base import Field

AXES = torch.tensor([0.6, 0.4, 0.25])  # of the ellipsoid
ROOT = Path(__file__).parent.parent


def quiet(line: str) -> None:
    pass


class Ellipsoid(Field):
    """A soft ellipsoid whose colours are its coordinates: density 10 on its surface."""

    radius = 1.0

    def density(self, x: Tensor) -> Tensor:
        return 20 * torch.sigmoid(40 * (1 - (x / AXES).norm(dim=-1)))

    def features(self, x: Tensor) -> Tensor:
        return x


def paint(x: Tensor) -> Tensor:
    """Colours that change across a few cells."""
    return 0.5 + 0.4 * torch.sin(x.roll(1, -1) * 12 + x * 3)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    scene = Scene(Ellipsoid(), NoMaterial(activation="scale_-11_01"), NeuralEnvironment(Streams(0, 0)), Volume(samples=8))
    return extract(scene, resolution=48, threshold=10.0, say=quiet)


@pytest.fixture(scope="module")
def textured(mesh: Mesh) -> Mesh:
    """2 000 faces and 256 x 256 texels."""
    return finish(mesh, paint, faces=2000, texture=256, say=quiet)


def volume(mesh: Mesh) -> float:
    """The signed volume: positive where faces turn outwards."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(float), 1, 0)
    return float((a * np.cross(b, c)).sum() / 6)


def boundary_edges(mesh: Mesh) -> int:
    """How many directed edges lack their opposite: none on a closed, consistently oriented surface."""
    edges = {(a, b) for face in mesh.faces.tolist() for a, b in zip(face, face[1:] + face[:1])}
    return sum((b, a) not in edges for a, b in edges)


def test_surface_is_the_ellipsoid(mesh: Mesh) -> None:
    radius = np.linalg.norm(mesh.vertices / AXES.numpy(), axis=1)
    assert np.abs(radius - 1).max() < 0.02
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * float(AXES.prod()), rel=0.01)
    assert boundary_edges(mesh) == 0
    expected = mesh.vertices / AXES.numpy() ** 2
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (mesh.normals * expected).sum(1).min() > 0.97
    np.testing.assert_allclose(mesh.colours, mesh.vertices / 2 + 0.5, atol=1e-6)


def test_cells_are_spent_on_the_object() -> None:
    """The longest side of the tight box (the extent and 10 % a side) has `resolution` cells."""
    small = iso_surface(lambda x: 20 * ((x - 0.5).norm(dim=-1) < 0.1), 1.0, 40, 10.0, quiet)
    assert len(np.unique(small.vertices[:, 0].round(5))) >= 30


def test_distances_are_evaluated_near_the_surface_and_make_the_same_mesh() -> None:
    """A torus, its distance stretched by up to 2.5, as networks stretch them."""
    points: list[int] = []

    def torus(x: Tensor) -> Tensor:
        points.append(len(x))
        around = torch.stack([x[:, :2].norm(dim=-1) - 0.5, x[:, 2]])
        return (0.12 - around.norm(dim=0)) * (2 + 0.5 * torch.sin(9 * x[:, 0]))

    everywhere, points_everywhere = iso_surface(torus, 0.8, 96, 0.0, quiet), sum(points)
    points.clear()
    near = iso_surface(torus, 0.8, 96, 0.0, quiet, distance=True)
    np.testing.assert_array_equal(near.faces, everywhere.faces)
    np.testing.assert_array_equal(near.vertices, everywhere.vertices)
    assert sum(points) - 49**3 < 0.5 * (points_everywhere - 49**3)  # the first pass is the same


def test_auto_threshold_is_the_mean_where_not_empty() -> None:
    """A pyramid 8 (1 - m), m = 2 |x|_max, has mean 2 in its cube; its tight box is m < 0.9, its mean 2.6 there."""
    said: list[str] = []
    mesh = iso_surface(lambda x: (8 * (1 - 2 * x.abs().amax(1))).clamp(min=1e-6), 0.5, 96, "auto", said.append)
    assert float(said[0].split("density ")[1].split(" ")[0]) == pytest.approx(2.6, rel=0.05) and len(said) == 1
    assert mesh.vertices.max() == pytest.approx(0.3375, rel=0.03)


def test_crumbs_are_dropped_and_parts_kept() -> None:
    centres = torch.tensor([[-0.5, 0, 0], [0.3, 0, 0], [0.8, 0.8, 0.8]])
    radii = torch.tensor([0.3, 0.2, 0.02])

    def balls(x: Tensor) -> Tensor:
        return 20 * torch.sigmoid(60 * (radii - torch.cdist(x, centres))).amax(1)

    mesh = iso_surface(balls, 1.0, 64, 10.0, quiet)
    assert mesh.vertices.max() < 0.55 and mesh.vertices[:, 0].max() > 0.48
    assert set(np.unique(mesh.faces)) == set(range(len(mesh.vertices)))


def test_surface_closes_at_the_box() -> None:
    mesh = iso_surface(lambda x: torch.full((len(x),), 5.0), 0.5, 8, "auto", quiet)
    assert boundary_edges(mesh) == 0 and np.abs(mesh.vertices).max() == pytest.approx(0.5)
    assert volume(mesh) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("density, threshold, said", [
    (0.0, "auto", "field is empty"), (3.0, 10.0, r"above 10 \(largest 3\)"), (float("nan"), "auto", "not finite")])
def test_nothing_to_export_says_so(density: float, threshold: float | str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        iso_surface(lambda x: torch.full((len(x),), density), 1.0, 8, threshold, quiet)


def accessor(path: Path, name: str) -> np.ndarray:
    """A float attribute [V, 3] of the one mesh in a GLB file, read from its bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[12:16], "little")
    document, binary = json.loads(content[20:20 + length]), content[28 + length:]
    found = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"][name]]
    start = document["bufferViews"][found["bufferView"]]["byteOffset"] + found.get("byteOffset", 0)
    assert (found["componentType"], found["type"]) == (5126, "VEC3")
    return np.frombuffer(binary, "<f4", 3 * found["count"], start).reshape(-1, 3)


def test_glb_is_read_back_y_up_with_linear_colours(mesh: Mesh, tmp_path: Path) -> None:
    files.write(mesh, tmp_path / "mesh.glb")
    (read,) = trimesh.load(tmp_path / "mesh.glb").geometry.values()
    np.testing.assert_array_equal(read.vertices, mesh.vertices[:, [1, 2, 0]])
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_allclose(read.vertex_normals, mesh.normals[:, [1, 2, 0]], atol=1e-6)
    assert read.volume == pytest.approx(volume(mesh), rel=1e-5)
    assert read.extents.argmax() == 2  # the world's x, its front, is glTF's z
    assert (read.visual.material.metallicFactor, read.visual.material.roughnessFactor) == (0, 1)
    expected = np.power((mesh.colours + 0.055) / 1.055, 2.4)  # all colours here are above the linear toe
    np.testing.assert_allclose(accessor(tmp_path / "mesh.glb", "COLOR_0"), expected, rtol=1e-5)


def test_glb_has_no_validator_complaint(mesh: Mesh, textured: Mesh, tmp_path: Path) -> None:
    """The Khronos validator: `npm i gltf-validator` in the checkout, or its folder in NODE_PATH."""
    node = shutil.which("node")
    if not node or subprocess.run([node, "-e", "require('gltf-validator')"], capture_output=True).returncode:
        pytest.skip("no node with the package gltf-validator")
    files.write(mesh, tmp_path / "mesh.glb")
    files.write(Mesh(mesh.vertices, mesh.faces), tmp_path / "plain.glb")
    files.write(textured, tmp_path / "textured.glb")
    script = """require('gltf-validator').validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[1])))
                .then(report => console.log(JSON.stringify(report.issues)))"""
    for path in tmp_path.glob("*.glb"):
        issues = json.loads(subprocess.check_output([node, "-e", script, str(path)]))
        assert (issues["numErrors"], issues["numWarnings"], issues["messages"]) == (0, 0, [])


def test_obj_is_read_back(mesh: Mesh, tmp_path: Path) -> None:
    files.write(mesh, tmp_path / "mesh.obj")
    read = trimesh.load(tmp_path / "mesh.obj", process=False)
    np.testing.assert_array_equal(read.vertices.astype(np.float32), mesh.vertices[:, [1, 2, 0]])
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_allclose(read.visual.vertex_colors[:, :3] / 255, mesh.colours, atol=0.005)


def test_ply_is_read_back_in_the_world_frame(mesh: Mesh, tmp_path: Path) -> None:
    files.write(mesh, tmp_path / "mesh.ply")
    read = plyfile.PlyData.read(tmp_path / "mesh.ply")
    vertex = read["vertex"]
    np.testing.assert_array_equal(np.stack([vertex[c] for c in "xyz"], 1), mesh.vertices)
    np.testing.assert_array_equal(np.stack([vertex["n" + c] for c in "xyz"], 1), mesh.normals)
    np.testing.assert_array_equal(np.stack(read["face"]["vertex_indices"]), mesh.faces)
    colours = np.stack([vertex[c] for c in ("red", "green", "blue")], 1) / 255
    np.testing.assert_allclose(colours, mesh.colours, atol=0.5 / 255 + 1e-6)


def test_srgb_of_linear_is_the_identity() -> None:
    """linear() is undone by the standard's other direction, on both sides of the toe."""
    srgb = np.linspace(0, 1, 101)
    light = files.linear(srgb)
    back = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(back, srgb, atol=1e-6)


def test_png_and_gif_are_read_back(tmp_path: Path) -> None:
    frames = torch.zeros(3, 8, 10, 3)
    for i in range(3):
        frames[i, ..., i] = 1  # red, green, blue
    pictures.png(frames[0], tmp_path / "view.png")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "view.png")), (frames[0] * 255).byte())
    pictures.film(frames, tmp_path / "turn.gif", fps=20)
    film = Image.open(tmp_path / "turn.gif")
    assert (film.n_frames, film.size, film.info["duration"], film.info["loop"]) == (3, (10, 8), 50, 0)
    for i in range(3):
        film.seek(i)
        np.testing.assert_allclose(np.array(film.convert("RGB")), frames[i] * 255, atol=8)


def test_mp4_has_all_frames(tmp_path: Path) -> None:
    if not shutil.which("ffprobe"):
        pytest.skip("no ffmpeg")
    pictures.film(torch.rand(5, 33, 48, 3, generator=torch.Generator().manual_seed(0)), tmp_path / "turn.mp4", fps=10)
    entries = "stream=width,height,nb_read_frames,r_frame_rate"
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", entries, "-of", "csv=p=0"]
    said = subprocess.check_output([*probe, tmp_path / "turn.mp4"], text=True)
    assert said.strip() == "48,34,10/1,5"  # padded to even


def test_mp4_without_ffmpeg_is_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ffmpeg"):
        pictures.film(torch.zeros(2, 8, 8, 3), tmp_path / "turn.mp4")
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix_names_the_known(mesh: Mesh, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="written as .glb, .obj, .ply, not .stl"):
        files.write(mesh, tmp_path / "mesh.stl")
    with pytest.raises(UserError, match="as .gif or .mp4, not without a suffix"):
        pictures.film(torch.zeros(1, 2, 2, 3), tmp_path / "turn")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "mesh.glb"
    path.write_text("old")
    with pytest.raises(RunError, match="disk is full"), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="nowhere"), files.atomic(tmp_path / "nowhere" / "mesh.glb") as temporary:
        temporary.write_text("x")


def test_colours_are_clipped(mesh: Mesh) -> None:
    colours = coloured(mesh, lambda x: 9 * x).colours
    assert colours.min() == 0 and colours.max() == 1


def sampled(picture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear lookups [N, C] at uv [N, 2] (v downwards), clamped to the edge."""
    H, W = picture.shape[:2]
    place = uv * [W, H] - 0.5
    first, share = np.floor(place).astype(int), place % 1
    total = np.zeros((len(uv), picture.shape[2]))
    for right, down in np.ndindex(2, 2):
        weight = np.where([right, down], share, 1 - share).prod(1, keepdims=True)
        total += weight * picture[(first[:, 1] + down).clip(0, H - 1), (first[:, 0] + right).clip(0, W - 1)]
    return total


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_texture_is_read_back_as_the_field(textured: Mesh, tmp_path: Path, suffix: str) -> None:
    """Another program's geometry, UV and picture give the colours that were baked, all over the surface."""
    files.write(textured, tmp_path / f"mesh.{suffix}")
    (read,) = trimesh.load_scene(tmp_path / f"mesh.{suffix}", process=False).geometry.values()
    assert read.volume == pytest.approx(volume(textured), rel=1e-5) and len(read.faces) == len(textured.faces)
    same = np.linalg.norm(read.vertices[:, None] - textured.vertices[:, [1, 2, 0]], axis=-1).argmin(1)
    np.testing.assert_allclose(read.vertex_normals, textured.normals[:, [1, 2, 0]][same], atol=1e-5)
    material = read.visual.material
    picture = np.array(material.baseColorTexture if suffix == "glb" else material.image)[..., :3] / 255
    rng = np.random.default_rng(0)
    face = rng.choice(len(read.faces), 20_000, p=read.area_faces / read.area)
    weight = rng.dirichlet([1, 1, 1], len(face))[..., None]
    x = (weight * read.vertices[read.faces[face]]).sum(1)[:, [2, 0, 1]]  # the world's
    uv = (weight * read.visual.uv[read.faces[face]]).sum(1) * [1, -1] + [0, 1]  # trimesh has v upwards
    error = sampled(picture, uv) - paint(torch.from_numpy(x)).numpy()
    assert psnr(error, np.zeros(1)) > 40 and np.abs(error).max() < 0.15


def test_picture_of_the_file_is_the_picture_of_the_source(textured: Mesh, tmp_path: Path) -> None:
    """Seen from the front, one ray a pixel: what the file shows is what the dense surface and its field show."""
    files.write(textured, tmp_path / "mesh.glb")
    read = trimesh.load(tmp_path / "mesh.glb", process=False, force="mesh")
    y, z = np.meshgrid(*(np.linspace(-0.7, 0.7, 64),) * 2)
    front, uv = np.full(y.shape, -np.inf), np.zeros((*y.shape, 2))
    for corners, at in zip(read.vertices[read.faces], read.visual.uv[read.faces] * [1, -1] + [0, 1]):
        a, b, c = corners[:, :2]
        area = (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]
        if area <= 0:
            continue
        w1 = ((y - a[0]) * (c - a)[1] - (z - a[1]) * (c - a)[0]) / area
        w2 = ((b - a)[0] * (z - a[1]) - (b - a)[1] * (y - a[0])) / area
        weight = np.stack([1 - w1 - w2, w1, w2], -1)
        depth = weight @ corners[:, 2]
        hit = (weight.min(-1) >= 0) & (depth > front)
        front[hit], uv[hit] = depth[hit], (weight @ at)[hit]
    shown = np.where(front[..., None] > -np.inf, sampled(np.array(read.visual.material.baseColorTexture)[..., :3] / 255,
                                                         uv.reshape(-1, 2)).reshape(64, 64, 3), 1)
    inside = 1 - (y / AXES[1].item()) ** 2 - (z / AXES[2].item()) ** 2
    x = AXES[0].item() * np.sqrt(inside.clip(0))
    true = np.where(inside[..., None] > 0, paint(torch.from_numpy(np.stack([x, y, z], -1))).numpy(), 1)
    assert psnr(shown, true) > 30


def test_charts_do_not_overlap(textured: Mesh) -> None:
    """Of the triangles drawn finely, each a little shrunk, no two cover one pixel, and they fill much of the picture."""
    from skimage.draw import polygon

    atlas, count = textured.texture.atlas, np.zeros((2048, 2048), int)
    np.testing.assert_array_equal(atlas.source[atlas.faces], textured.faces)
    corners = atlas.uv[atlas.faces].astype(float)
    assert corners.min() >= 0 and corners.max() <= 1
    for u, v in np.moveaxis(0.98 * corners + 0.02 * corners.mean(1, keepdims=True), 2, 1) * 2048 - 0.5:
        count[polygon(v, u, count.shape)] += 1
    assert count.max() == 1 and count.mean() > 0.3


def test_seams_do_not_show(textured: Mesh) -> None:
    """A vertex has one colour in all charts that it is on, though every chart's surroundings are another's."""
    texture = textured.texture
    colours = sampled(texture.albedo, texture.atlas.uv.astype(float))
    true = paint(torch.from_numpy(textured.vertices)).numpy()[texture.atlas.source]
    on_seams = np.bincount(texture.atlas.source)[texture.atlas.source] > 1
    assert on_seams.sum() > 100 and np.abs(colours - true)[on_seams].max() < 0.15


def test_blub_keeps_shape_and_colours(shared: Path) -> None:
    """Half the faces of a real mesh: a Chamfer distance of a thousandth of its size, and its texture."""
    blub = trimesh.load(shared / "meshes/blub.obj", process=False, force="mesh")
    blub.merge_vertices(merge_tex=True, merge_norm=True)
    mesh = finish(Mesh(blub.vertices.astype(np.float32), blub.faces.astype(np.int32)), paint, 6000, 512, 0.0, quiet)
    few = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert len(few.faces) == 6000 and few.is_watertight == blub.is_watertight
    a, b = (cKDTree(surface.sample(60_000, seed=0)) for surface in (blub, few))
    sampling = cKDTree(blub.sample(60_000, seed=1)).query(a.data)[0].mean()  # of two samples of the same surface
    assert (a.query(b.data)[0].mean() + b.query(a.data)[0].mean()) / 2 < sampling + 1e-3 * blub.scale
    atlas = mesh.texture.atlas
    x, uv = mesh.vertices[mesh.faces].mean(1), atlas.uv[atlas.faces].astype(float).mean(1)
    assert psnr(sampled(mesh.texture.albedo, uv), paint(torch.from_numpy(x)).numpy()) > 30


def test_decimated_surface_is_still_the_ellipsoid(mesh: Mesh) -> None:
    few = decimated(mesh, 1000)
    assert len(few.faces) == 1000 and few.open_edges == 0
    assert volume(few) == pytest.approx(volume(mesh), rel=0.01)
    assert np.abs(np.linalg.norm(few.vertices[few.faces].mean(1) / AXES.numpy(), axis=1) - 1).max() < 0.03
    assert decimated(mesh, 0) is mesh and decimated(mesh, len(mesh.faces)) is mesh


def test_a_watertight_mesh_is_called_so(mesh: Mesh) -> None:
    said: list[str] = []
    finish(mesh, paint, say=said.append)
    finish(Mesh(mesh.vertices, mesh.faces[1:]), paint, texture=64, height_m=1.8, say=said.append)
    n = len(mesh.faces)
    assert said == [f"mesh: {n:,} faces, watertight", f"mesh: {n - 1:,} faces, 3 open edges, texture 64 x 64, 1.8 m tall"]


def test_only_the_largest_part_is_kept_on_demand() -> None:
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    both = Mesh(np.eye(9, 3, dtype=np.float32), np.concatenate([tetrahedron + 4, tetrahedron[:3]]))
    assert [len(without_crumbs(both, parts).faces) for parts in (0.5, 1)] == [7, 4]


def test_real_size_stands_on_the_ground(textured: Mesh, tmp_path: Path) -> None:
    tall = finish(textured, paint, height_m=1.8, say=quiet)
    for suffix in ("glb", "obj"):
        files.write(tall, tmp_path / f"mesh.{suffix}")
        low, high = trimesh.load(tmp_path / f"mesh.{suffix}", force="mesh").bounds
        np.testing.assert_allclose([low[1], high[1], low[0] + high[0], low[2] + high[2]], [0, 1.8, 0, 0], atol=1e-5)
        assert (high - low)[2] / 1.8 == pytest.approx(0.6 / 0.25, rel=0.02)
