"""The page in a real browser without a network: its viewers against the program's own pictures, its curves against lines."""

import json
import subprocess
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from numpy import ndarray
from PIL import Image

from mpiprop import report
from mpiprop.core.streams import Streams
from mpiprop.io import files
from mpiprop.io.mesh import Mesh
from mpiprop.render.splat import colours, rasterize
from mpiprop.report import splats
from mpiprop.shapes.clouds import ply
from mpiprop.shapes.clouds.gaussians import Gaussians
from mpiprop.views.cameras import orbit

WASH = (246, 247, 248)  # of the page behind the object
AZIMUTH, ELEVATION, FAR, FOVY = 0.6, 0.3, 2.9, 0.8  # the viewer's first view


def screen(folder: Path) -> ndarray:
    """The page of the run in `folder` as Chromium draws it [H, W, 3] (bytes)."""
    if (browser := which("chromium") or which("chromium-browser") or which("google-chrome")) is None:
        pytest.skip("no chromium")
    report.write([report.RunSummary.read(folder)], folder / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--use-gl=angle", "--hide-scrollbars",
               "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--host-resolver-rules=MAP * ~NOTFOUND",
               f"--user-data-dir={folder / 'browser'}", "--window-size=900,900", "--virtual-time-budget=6000",
               f"--screenshot={folder / 'page.png'}"]
    subprocess.run([browser, *options, f"file://{folder / 'report.html'}"], check=True, capture_output=True, timeout=120)
    return np.array(Image.open(folder / "page.png").convert("RGB"))


def canvas(folder: Path) -> ndarray:
    """The page cut to its one viewer [S, S, 3]."""
    page = screen(folder)
    wash = (page == WASH).all(2)
    rows, columns = (np.nonzero(wash.sum(axis) > 100)[0] for axis in (1, 0))  # text has such pixels, too, but few
    found = page[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    assert found.shape[0] == found.shape[1] > 200
    return found


def test_gaussians_are_drawn_as_the_program_draws_them(tmp_path: Path) -> None:
    """Large and small ones, turned, half transparent, one behind another: 40 dB from the program's own rendering."""
    rng = torch.Generator().manual_seed(0)
    shape = Gaussians(Streams(0, 0), number=200, ball=0.5, opacity=0.6)
    shape.position.data[100:] = -shape.position.data[:100]  # the middle of the box is the origin
    shape.scale.data = -2 - 2 * torch.rand(200, 3, generator=rng)
    shape.rotation.data = torch.randn(200, 4, generator=rng)
    shape.f_dc.data = torch.randn(200, 1, 3, generator=rng)
    shape.opacity.data = 3 * torch.randn(200, 1, generator=rng)
    (tmp_path / "config.yaml").write_text("prompt: a cloud\n")
    ply.write(shape.rows(), tmp_path / "cloud.ply")
    drawn = canvas(tmp_path)

    low, high = splats.packed(tmp_path / "cloud.ply").box
    distance = FAR * np.linalg.norm(np.subtract(high, low)) / 2
    view = orbit(AZIMUTH, ELEVATION, float(distance), FOVY, drawn.shape[:2])
    with torch.no_grad():
        cloud_ = shape.splats()
        seen = colours(cloud_, view)
        seen[..., :3].clamp_(max=1)  # what a byte holds
        layers, _ = rasterize(cloud_, seen, view, 0.01, 100)
    rgb, _, opacity = layers[0].split([3, 1, 1], -1)
    expected = (rgb + (1 - opacity) * torch.tensor(WASH) / 255).clamp(0, 1).numpy()
    error = np.square(drawn[12:-12, 12:-12] / 255 - expected[12:-12, 12:-12]).mean()  # its corners are round
    assert opacity.mean() > 0.1 and -10 * np.log10(error) > 40


def test_a_mesh_is_drawn_in_its_colours(tmp_path: Path) -> None:
    """A tetrahedron whose front is red: red in the middle, nothing in the corner."""
    vertices = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32) / 2
    faces = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], np.int32)
    red = np.tile(np.array([[0.9, 0.1, 0.1]], np.float32), (4, 1))
    (tmp_path / "config.yaml").write_text("prompt: a tetrahedron\n")
    files.write(Mesh(vertices, faces, red), tmp_path / "mesh.glb")
    drawn = canvas(tmp_path)
    side = len(drawn)
    red, green, blue = drawn[side // 2, side // 2].astype(int)
    assert red > 130 and max(green, blue) < red / 2 and abs(green - blue) < 20 and tuple(drawn[20, 20]) == WASH


def test_curves_are_straight_where_the_series_is(tmp_path: Path) -> None:
    """A line falls along y = a x + b; powers of ten, on the logarithmic axis of errors, along another."""
    record = {"stage": "only", "k": 1, "seconds": 1.0, "e": 0.0}
    lines = [record | {"tau": i + 1, "stride": 3 * i + 1, "errors": [10.0 ** (i / 4 - 6)]} for i in range(20)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = screen(tmp_path)
    blue = (np.abs(page.astype(int) - (37, 99, 168)) < 40).all(2)
    for rows in (slice(360, 560), slice(700, 900)):  # where the two charts are on a page of this width
        x = np.flatnonzero(blue[rows].any(0))
        y = np.array([np.flatnonzero(blue[rows, column]).mean() for column in x])
        slope, start = np.polyfit(x, y, 1)
        assert len(x) > 600 and slope < -0.15 and np.abs(slope * x + start - y).max() < 2
