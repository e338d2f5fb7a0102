"""Which points of a grid are inside a closed mesh.

Letters: V vertices, F faces, X x Y x Z grid points, P pairs of a face and a column of the grid that it crosses.
"""

import numpy as np
from numpy import ndarray

NUDGE = np.array([0.00137, 0.00173])  # of a cell: columns do not run through vertices and edges of regular meshes
CHUNK = 1 << 20  # pairs at a time


def inside(vertices: ndarray, faces: ndarray, axes: tuple[ndarray, ndarray, ndarray]) -> ndarray:
    """Whether the points of the grid with these axes (ascending, evenly spaced) are inside the mesh [X, Y, Z].

    A point is inside where the faces below it, each counted +1 if it faces down and -1 if it faces up, sum to more than 0:
    the winding number of a closed mesh whose faces are counterclockwise seen from outside.
    """
    x, y, z = axes
    step = np.array([x[1] - x[0], y[1] - y[0]])
    origin = np.array([x[0], y[0]]) + NUDGE * step
    corners = vertices[faces].astype(np.float64)  # [F, 3, 3]
    place = (corners[..., :2] - origin) / step  # in cells
    first = np.ceil(place.min(1)).clip(0).astype(int)
    last = np.floor(place.max(1)).astype(int).clip(None, [len(x) - 1, len(y) - 1])
    wide, high = (last - first + 1).clip(0).T
    crossings = np.zeros((len(x), len(y), len(z) + 1), np.int32)
    count = wide * high
    ends = np.cumsum(count)
    for some in np.split(np.arange(len(faces)), np.searchsorted(ends, np.arange(CHUNK, count.sum(), CHUNK))):
        face = np.repeat(some, count[some])  # [P]
        offset = np.arange(len(face)) - np.repeat(np.cumsum(count[some]) - count[some], count[some])
        column, row = first[face, 0] + offset % wide[face], first[face, 1] + offset // wide[face]
        a, b, c = np.moveaxis(place[face], 1, 0)
        p = np.stack([column, row], 1)
        areas = np.stack([_cross(b - p, c - p), _cross(c - p, a - p), _cross(a - p, b - p)])  # twice, signed
        hit = (areas > 0).all(0) | (areas < 0).all(0)
        areas, face = areas[:, hit], face[hit]
        height = (areas * corners[face, :, 2].T).sum(0) / areas.sum(0)
        sign = np.where(areas.sum(0) > 0, -1, 1)  # faces that turn upwards end the solid
        np.add.at(crossings, (column[hit], row[hit], np.searchsorted(z, height)), sign)
    return crossings.cumsum(2)[..., :-1] > 0


def _cross(a: ndarray, b: ndarray) -> ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
