"""Exported surfaces against closed forms, and files against other programs' readers."""

import errno
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mpiprop.core.errors import RunError, UserError
from mpiprop.export import files, pictures
from mpiprop.export.mesh import Mesh, coloured, extract, iso_surface

AXES = torch.tensor([0.6, 0.4, 0.25])  # of the ellipsoid
ROOT = Path(__file__).parent.parent


def quiet(line: str) -> None:
    pass


class Ellipsoid:
    """A soft ellipsoid whose colours are its coordinates: density 10 on its surface."""

    device, bound = torch.device("cpu"), 1.0

    def mesh_density(self, x: Tensor) -> Tensor:
        return 20 * torch.sigmoid(40 * (1 - (x / AXES).norm(dim=-1)))

    def albedo(self, x: Tensor) -> Tensor:
        return x / 2 + 0.5


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return extract(Ellipsoid(), resolution=48, threshold=10.0, say=quiet)


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


def test_glb_is_read_back_y_up_with_linear_colours(mesh: Mesh, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    files.write(mesh, tmp_path / "mesh.glb")
    (read,) = trimesh.load(tmp_path / "mesh.glb").geometry.values()
    np.testing.assert_array_equal(read.vertices, mesh.vertices[:, [1, 2, 0]])
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_allclose(read.vertex_normals, mesh.normals[:, [1, 2, 0]], atol=1e-6)
    assert read.volume == pytest.approx(volume(mesh), rel=1e-5)
    assert read.extents.argmax() == 2  # the world's x, its front, is glTF's z
    colours = np.asarray(read.visual.vertex_attributes["color"], float)
    expected = np.power((mesh.colours + 0.055) / 1.055, 2.4)  # all colours here are above the linear toe
    np.testing.assert_allclose(colours[:, :3] / colours.max(), expected, atol=0.01)


def test_glb_has_no_validator_complaint(mesh: Mesh, tmp_path: Path) -> None:
    """The Khronos validator: `npm i gltf-validator` in the checkout, or its folder in NODE_PATH."""
    node = shutil.which("node")
    if not node or subprocess.run([node, "-e", "require('gltf-validator')"], capture_output=True).returncode:
        pytest.skip("no node with the package gltf-validator")
    files.write(mesh, tmp_path / "mesh.glb")
    files.write(Mesh(mesh.vertices, mesh.faces), tmp_path / "plain.glb")
    script = """require('gltf-validator').validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[1])))
                .then(report => console.log(JSON.stringify(report.issues)))"""
    for name in ("mesh.glb", "plain.glb"):
        issues = json.loads(subprocess.check_output([node, "-e", script, str(tmp_path / name)]))
        assert (issues["numErrors"], issues["numWarnings"], issues["messages"]) == (0, 0, [])


def test_obj_is_read_back(mesh: Mesh, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    files.write(mesh, tmp_path / "mesh.obj")
    read = trimesh.load(tmp_path / "mesh.obj", process=False)
    np.testing.assert_array_equal(read.vertices.astype(np.float32), mesh.vertices[:, [1, 2, 0]])
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_allclose(read.visual.vertex_colors[:, :3] / 255, mesh.colours, atol=0.005)


def test_ply_is_read_back_in_the_world_frame(mesh: Mesh, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
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


def test_contact_sheet_holds_every_picture(tmp_path: Path) -> None:
    red, blue = (torch.tensor(colour).expand(16, 16, 3) for colour in ((1.0, 0, 0), (0, 0, 1.0)))
    pictures.contact_sheet([("two red ones", [red, red]), ("a blue one", [blue])], tmp_path / "sheet.png")
    sheet = np.array(Image.open(tmp_path / "sheet.png")).astype(int)
    assert ((sheet == [255, 0, 0]).all(-1).sum(), (sheet == [0, 0, 255]).all(-1).sum()) == (2 * 256, 256)


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
