"""A surface unwrapped onto a square picture, and where its texels are in space (charts: xatlas, after Levy et al. 2002).

Letters: V vertices of the mesh, U of the atlas (one on a seam is there once for every chart), F faces, S x S texels, K of
them on charts, C channels. UV has (0, 0) at the outer corner of the first texel, u along rows, v down, as in glTF.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from mpiprop.core.errors import RunError

CHART = 0.03  # largest chart, as a share of the surface: larger ones are slow to flatten and stretch more
PADDING = 4  # texels between charts, before the atlas is scaled down to S: two and a half are left at 256, three at 1024
REACH = 1.5  # texels around a chart that bilinear lookups on its border read
CHUNK = 1 << 20  # pairs of face and texel looked at together


@dataclass(frozen=True)
class Atlas:
    """Where the corners of a mesh's faces are on the picture."""

    source: ndarray  # [U] int32, which vertex of the mesh
    faces: ndarray  # [F, 3] int32 into U: the mesh's faces in their order
    uv: ndarray  # [U, 2] float32 in [0, 1]

    def texels(self, vertices: ndarray, size: int) -> tuple[ndarray, ndarray]:
        """Numbers [K] (row by row, ascending) and positions [K, 3] float32 of the texels on charts or within REACH of one.

        A texel beside its chart has the position of a point on the chart's border. `vertices` [V, 3], S = `size`.
        """
        weights, heights = _barycentric(self.uv[self.faces].astype(np.float64) * size)
        owner = _owners(self.uv[self.faces] * size, weights, heights, size)
        where = np.flatnonzero(owner >= 0)
        face = owner[where]
        inside = _at(weights[face], where % size, where // size).clip(0)
        corners = vertices[self.source[self.faces[face]]]
        return where, np.einsum("kc,kcx->kx", inside / inside.sum(1, keepdims=True), corners).astype(np.float32)


@dataclass(frozen=True)
class Texture:
    """A picture on an atlas."""

    atlas: Atlas
    albedo: ndarray  # [S, S, 3] float32, sRGB in [0, 1]


def unwrap(vertices: ndarray, faces: ndarray, normals: ndarray, size: int) -> Atlas:
    """An atlas of the mesh for a picture of size x size texels; charts do not overlap and share no texel's border.

    vertices [V, 3], faces [F, 3], normals [V, 3]. Raises RunError without the package xatlas.
    """
    try:
        import xatlas
    except ImportError:
        raise RunError("mesh.texture: needs the package xatlas (pip install xatlas); mesh.texture=0 keeps vertex colours"
                       ) from None
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_chart_area = CHART * 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum(dtype=np.float64)
    packing.resolution, packing.padding = size, PADDING
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces.astype(np.uint32), normals)
    atlas.generate(charts, packing)
    source, corners, uv = atlas.get_mesh(0)
    return Atlas(source.astype(np.int32), corners.astype(np.int32), uv)


def paint(where: ndarray, values: ndarray, size: int) -> ndarray:
    """A picture [S, S, C] with `values` [K, C] at the texels numbered `where` [K], all others like the nearest of those."""
    from scipy.ndimage import distance_transform_edt

    picture = np.zeros((size * size, values.shape[1]), np.float32)
    empty = np.ones(size * size, bool)
    picture[where], empty[where] = values, False
    row, column = distance_transform_edt(empty.reshape(size, size), return_distances=False, return_indices=True)
    return picture.reshape(size, size, -1)[row, column]


def _barycentric(corners: ndarray) -> tuple[ndarray, ndarray]:
    """Weights of the corners [F, 3, 2] as coefficients [F, 3, (x, y, 1)], and heights [F, 3] (texels) of the triangles.

    A triangle without area has weights and heights of 0.
    """
    start, end = np.roll(corners, -1, 1), np.roll(corners, -2, 1)  # the edge opposite to each corner
    edge = end - start
    normal = np.stack([-edge[..., 1], edge[..., 0]], -1)  # to the left
    twice = (normal * (corners - start)).sum(-1)  # the area, twice, the same for the three corners but for rounding
    full = np.abs(twice).min(1) > 1e-9
    scale = np.divide(1, twice, where=full[:, None], out=np.zeros_like(twice))[..., None]
    weights = np.concatenate([normal, -(normal * start).sum(-1, keepdims=True)], -1) * scale
    length = np.linalg.norm(edge, axis=-1)
    return weights, np.divide(np.abs(twice), length, where=full[:, None], out=np.zeros_like(length))


def _at(weights: ndarray, column: ndarray, row: ndarray) -> ndarray:
    """Barycentric coordinates [K, 3] of the centres of texels [K] by `weights` [K, 3, 3]."""
    x, y = column[:, None] + 0.5, row[:, None] + 0.5
    return weights[..., 0] * x + weights[..., 1] * y + weights[..., 2]


def _owners(corners: ndarray, weights: ndarray, heights: ndarray, size: int) -> ndarray:
    """The triangle [S * S] that each texel's centre is in, or nearest to within REACH; -1 where there is none.

    Depth is the least distance to the lines of a triangle's edges: positive inside of it, and the deepest wins.
    """
    first = np.ceil(corners.min(1) - REACH - 0.5).clip(0, size - 1).astype(np.int32)
    last = np.floor(corners.max(1) + REACH - 0.5).clip(0, size - 1).astype(np.int32)
    wide, high = np.moveaxis(last - first + 1, 1, 0)
    count = np.where(heights[:, 0] > 0, wide * high, 0)
    ends = np.cumsum(count)
    best, owner = np.full(size * size, -REACH), np.full(size * size, -1, np.int32)
    for part in np.split(np.arange(len(count)), np.searchsorted(ends, np.arange(CHUNK, ends[-1], CHUNK))):
        face = np.repeat(part, count[part])
        offset = np.arange(len(face)) - np.repeat(np.cumsum(count[part]) - count[part], count[part])
        column = first[face, 0] + offset % wide[face]
        row = first[face, 1] + offset // wide[face]
        depth = (_at(weights[face], column, row) * heights[face]).min(1)
        texel = row * size + column
        np.maximum.at(best, texel, depth)
        won = depth == best[texel]
        owner[texel[won]] = face[won]
    return owner
