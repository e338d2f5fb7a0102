"""The surface of a density field as a coloured triangle mesh (marching cubes: Lorensen and Cline 1987, section 4).

Letters: N points, V vertices, F faces, X x Y x Z grid points. World: right-handed, z up, azimuth 0 on +x ("front").
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from mpiprop.core.errors import RunError

if TYPE_CHECKING:
    from mpiprop.scene import Scene

Say = Callable[[str], None]
EMPTY = 1e-5  # densities up to here are empty space, not part of the mean that "auto" takes
MARGIN = 0.1  # of the coarse mesh's extent, on each side of the box that is looked at closely
SMALL = 0.01  # of the largest component's faces: what is smaller is dropped
CHUNK = 1 << 16  # points evaluated at a time


@dataclass(frozen=True)
class Mesh:
    """Triangles in the world frame, counterclockwise seen from outside."""

    vertices: ndarray  # [V, 3] float32, world units
    faces: ndarray  # [F, 3] int32
    colours: ndarray | None = None  # [V, 3] float32 sRGB in [0, 1]

    @property
    def normals(self) -> ndarray:
        """Outward unit normals [V, 3]: the mean of the faces around a vertex, by area; +z where they cancel."""
        a, b, c = np.moveaxis(self.vertices[self.faces].astype(np.float64), 1, 0)
        area = np.cross(b - a, c - a)
        corners, V = self.faces.ravel(), len(self.vertices)
        total = np.stack([np.bincount(corners, np.repeat(area[:, axis], 3), V) for axis in range(3)], 1)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return np.where(length > 0, total / np.where(length > 0, length, 1), (0, 0, 1)).astype(np.float32)


def extract(scene: "Scene", resolution: int = 128, threshold: float | Literal["auto"] = "auto",
            say: Say = print) -> Mesh:
    """The coloured surface of a scene; see `iso_surface`."""
    mesh = iso_surface(lambda x: scene.mesh_density(x.to(scene.device)), scene.bound, resolution, threshold, say)
    return coloured(mesh, lambda x: scene.albedo(x.to(scene.device)))


def iso_surface(density: Callable[[Tensor], Tensor], bound: float, resolution: int = 128,
                threshold: float | Literal["auto"] = "auto", say: Say = print) -> Mesh:
    """The closed surface where `density` (points [N, 3] -> [N]) falls through `threshold` inside [-bound, bound]^3.

    A first, coarser pass finds the box that holds the surface; the second spends `resolution` cells on its longest
    side. "auto" is, in each pass, the mean of the densities that are not empty; the last is said through `say`.
    Raises RunError where nothing is there.
    """
    box = np.array([[-bound] * 3, [bound] * 3])
    lo, spacing, field = _sample(density, box, max(2, resolution // 2))
    coarse, _ = _march(lo, spacing, field, _level(field, threshold))
    extent = np.ptp(coarse, axis=0)
    tight = np.clip([coarse.min(0) - MARGIN * extent, coarse.max(0) + MARGIN * extent], -bound, bound)
    lo, spacing, field = _sample(density, tight, resolution)
    level = _level(field, threshold)
    vertices, faces = _march(lo, spacing, field, level)
    mesh = _without_crumbs(Mesh(np.clip(vertices, -bound, bound).astype(np.float32), faces))
    chosen = "mean of the density where not empty" if threshold == "auto" else "as configured"
    say(f"mesh: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces at density {level:.4g} ({chosen})")
    return mesh


def coloured(mesh: Mesh, albedo: Callable[[Tensor], Tensor]) -> Mesh:
    """The mesh with the colours that `albedo` (points [N, 3] -> [N, 3] in [0, 1]) has at its vertices."""
    return replace(mesh, colours=_chunked(albedo, torch.from_numpy(mesh.vertices)).clip(0, 1))


def _chunked(function: Callable[[Tensor], Tensor], x: Tensor) -> ndarray:
    with torch.no_grad():
        return torch.cat([function(piece).float().cpu() for piece in x.split(CHUNK)]).numpy()


def _sample(density: Callable[[Tensor], Tensor], box: ndarray, resolution: int) -> tuple[ndarray, float, ndarray]:
    """The first grid point [3], the side of a cell, and the densities [X, Y, Z] of a grid of cubes over the box."""
    extent = box[1] - box[0]
    spacing = extent.max() / resolution
    axes = [torch.arange(int(np.ceil(side / spacing - 1e-6)) + 1, dtype=torch.float64) * spacing for side in extent]
    x = torch.cartesian_prod(*(axis + low for axis, low in zip(axes, box[0]))).float()
    field = _chunked(density, x).reshape([len(axis) for axis in axes])
    if not np.isfinite(field).all():
        raise RunError("mesh: the density is not finite everywhere; export an earlier checkpoint")
    return box[0], spacing, field


def _level(field: ndarray, threshold: float | Literal["auto"]) -> float:
    """The density at the surface. Raises RunError where the field nowhere exceeds it."""
    something = field[field > EMPTY]
    level = (something.mean(dtype=np.float64) if len(something) else EMPTY) if threshold == "auto" else threshold
    if field.max() < level or not len(something):
        raise RunError(f"mesh: the field is empty: no density above {level:.4g} (largest {field.max():.4g}); "
                       "train longer, or lower mesh.threshold")
    return float(level)


def _march(lo: ndarray, spacing: float, field: ndarray, level: float) -> tuple[ndarray, ndarray]:
    """Vertices [V, 3] and outward faces [F, 3]; empty space around the grid closes what reaches its border."""
    from skimage.measure import marching_cubes

    level = min(level, np.nextafter(field.max(), 0, dtype=np.float32))  # a field of one value is a full box
    vertices, faces, _, _ = marching_cubes(np.pad(field, 1), level, gradient_direction="ascent", allow_degenerate=False)
    return lo + (vertices - 1) * spacing, faces.astype(np.int32)


def _without_crumbs(mesh: Mesh) -> Mesh:
    """The mesh without components of fewer than 1 % of the largest one's faces, and without unused vertices."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    V, faces = len(mesh.vertices), mesh.faces
    edges = coo_array((np.ones(2 * len(faces), bool), (faces[:, [0, 0]].ravel(), faces[:, 1:].ravel())), (V, V))
    component = connected_components(edges, directed=False)[1][faces[:, 0]]
    size = np.bincount(component)
    faces = faces[size[component] >= SMALL * size.max()]
    used, faces = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int32))
