#!/usr/bin/env python
"""What a texture loses on its way into a file and back: a run's newest surface baked, written, read again and rendered.

    tools/roundtrip.py RUN [RUN ...] [--size 160] [--views 6]

Figures are peak signal-to-noise ratios in dB over the views: against the surface with its colours computed at every pixel, of
the texture as it was baked, and of the GLB and the OBJ as trimesh reads them.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.io.files import write  # noqa: E402
from mpiprop.io.mesh import Mesh, extract  # noqa: E402
from mpiprop.render import raster  # noqa: E402
from mpiprop.views.cameras import Views  # noqa: E402

WORLD = [2, 0, 1]  # (x, y, z) of glTF and OBJ -> the world's
Colour = Callable[[Tensor], Tensor]  # of points [N, 3], or of lookups [N, 2]


def shown(views: Views, vertices: Tensor, faces: Tensor, attributes: Tensor, corners: Tensor, colour: Colour) -> Tensor:
    """The pictures [B, H, W, 3] of a mesh on white, `colour` of `attributes` [U, C] with corners [F, 3] at each pixel."""
    positions = raster.clip(views, vertices)
    fragments = raster.rasterize(positions, faces, views.size)
    hit = fragments.face >= 0
    seen = raster.interpolate(attributes[None], corners, fragments)[hit]
    picture = torch.ones(*hit.shape, 3).masked_scatter(hit[..., None], colour(seen))
    return raster.antialias(picture, fragments, positions, faces, raster.neighbours(faces))


def painted(views: Views, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, picture: np.ndarray) -> Tensor:
    """The pictures of a textured mesh, v upwards; vertices at one place are one."""
    places, which = np.unique(vertices, axis=0, return_inverse=True)
    corners, texture = torch.tensor(faces, dtype=torch.int64), torch.tensor(picture, dtype=torch.float32)
    welded = torch.tensor(which.reshape(-1))[corners]
    return shown(views, torch.tensor(places, dtype=torch.float32), welded, torch.tensor(uv, dtype=torch.float32), corners,
                 lambda at: raster.sample_texture(texture, at))


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces, UV and picture of a file, as another program sees them."""
    import trimesh

    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    material = mesh.visual.material
    picture = material.image if path.suffix == ".obj" else material.baseColorTexture
    return mesh.vertices[:, WORLD], mesh.faces, mesh.visual.uv, np.asarray(picture)[..., :3] / 255


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).detach().square().mean()))


@torch.no_grad()
def losses(mesh: Mesh, source: Tensor, views: Views, folder: Path) -> dict[str, float]:
    """dB of a textured mesh against the pictures `source`: as baked, and as written in `folder` and read again."""
    atlas = mesh.texture.atlas
    found = {"baked": (mesh.vertices[atlas.source], atlas.faces, atlas.uv * [1, -1] + [0, 1], mesh.texture.albedo)}
    for suffix in ("glb", "obj"):
        write(mesh, folder / f"mesh.{suffix}")
        found[suffix] = read(folder / f"mesh.{suffix}")
    return {name: psnr(source, painted(views, *arrays)) for name, arrays in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--size", type=int, default=160, help="height and width of a view (pixels)")
    parser.add_argument("--views", type=int, default=6)
    args = parser.parse_args()

    from mpiprop.run import checkpoint
    from mpiprop.config import loader
    from mpiprop.run.stage import Stage

    torch.set_num_threads(1)
    for folder in args.runs:
        run, found = loader.load(str(folder / "config.yaml")), checkpoint.load(folder / "window.h5")
        index = [stage.name for stage in run.stages].index(found.stage)
        stage = Stage(run, index, torch.device("cpu"))
        scene = stage.scene.load(found.window.x.theta, stage.T)
        views = stage.views[0].turntable(args.views, (args.size, args.size))
        dense, mesh = (extract(scene, say=lambda line: None, **asdict(run.mesh) | keys) for keys in
                       ({"faces": 0, "texture": 0}, {}))
        vertices, faces = torch.tensor(dense.vertices), torch.tensor(dense.faces, dtype=torch.int64)
        source = shown(views, vertices, faces, vertices, faces, scene.albedo)
        with TemporaryDirectory() as place:
            told = losses(mesh, source, views, Path(place))
        print(f"{folder}: {len(dense.faces):,} faces, {len(mesh.faces):,} written with {run.mesh.texture} x {run.mesh.texture} "
              f"texels: " + ", ".join(f"{name} {value:.2f} dB" for name, value in told.items()))


if __name__ == "__main__":
    main()
