"""The surface where a function falls through a level: looked for first in the whole box, then in the one close around it.

Marching cubes: Lorensen and Cline 1987, section 4. Letters: N points, V vertices, F faces, X x Y x Z grid points.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from mpiprop.core.errors import RunError

EMPTY = 1e-5  # densities up to here are empty space, not part of the mean that "auto" takes
MARGIN = 0.1  # of the object's extent, on each side of the box that is looked at closely
CHUNK = 1 << 16  # points evaluated at a time

Function = Callable[[Tensor], Tensor]  # of points [N, 3]


def evaluated(function: Function, x: Tensor) -> ndarray:
    """A function's values at points, without gradient."""
    with torch.no_grad():
        return torch.cat([function(piece).float().cpu() for piece in x.split(CHUNK)]).numpy()


@dataclass(frozen=True)
class Grid:
    """Values at the points of a grid of cubes."""

    low: ndarray  # [3], the first point (world units)
    spacing: float  # side of a cube (world units)
    values: ndarray  # [X, Y, Z] float32

    @classmethod
    def over(cls, box: ndarray, resolution: int) -> "Grid":
        """Zeros over a box [2, 3], with so many cubes along its longest side."""
        spacing = np.ptp(box, axis=0).max() / resolution
        return cls(box[0], spacing, np.zeros(np.ceil(np.ptp(box, axis=0) / spacing - 1e-6).astype(int) + 1, np.float32))

    @property
    def axes(self) -> list[ndarray]:
        """The coordinates of its points along x, y and z."""
        return [low + np.arange(n) * self.spacing for low, n in zip(self.low, self.values.shape)]

    @property
    def steepest(self) -> float:
        """The length of the steepest gradient, by differences of neighbours."""
        f = self.values
        ahead = f[1:, :-1, :-1], f[:-1, 1:, :-1], f[:-1, :-1, 1:]
        return np.sqrt(sum((there - f[:-1, :-1, :-1]) ** 2 for there in ahead).max()) / self.spacing

    def filled(self, function: Function) -> "Grid":
        """The grid with a function's values."""
        return self._with(function, np.ones(self.values.shape, bool))

    def filled_near(self, function: Function, level: float, coarse: "Grid") -> "Grid":
        """The grid with a function's values wherever they can be on either side of `level`, and elsewhere what lies
        between those of a coarser grid, which are off by what the steepest slope makes of half a cube's diagonal."""
        between, reach = coarse.values, coarse.steepest * coarse.spacing * sqrt(3) / 2
        for i, x in enumerate(self.axes):
            at = (x - coarse.low[i]) / coarse.spacing
            before = np.clip(at.astype(int), 0, between.shape[i] - 2)
            share = (at - before).astype(np.float32).reshape(np.roll([-1, 1, 1], i))
            between = between.take(before, i) * (1 - share) + between.take(before + 1, i) * share
        return replace(self, values=between)._with(function, np.abs(between - level) <= reach)

    def _with(self, function: Function, where: ndarray) -> "Grid":
        """The grid with a function's values at some of its points [X, Y, Z]. Raises RunError where one is not finite."""
        values, axes = self.values.copy(), self.axes
        points = where.ravel().nonzero()[0]
        # in parts, since the coordinates of all points of a fine grid take gigabytes
        for part in np.split(points, range(CHUNK, len(points), CHUNK)):
            at = np.unravel_index(part, values.shape)
            x = np.stack([axis[i] for axis, i in zip(axes, at)], 1)
            values[at] = evaluated(function, torch.from_numpy(x).float())
        if not np.isfinite(values).all():
            raise RunError("mesh: the density is not finite everywhere; export an earlier checkpoint")
        return replace(self, values=values)

    def level(self, threshold: float | Literal["auto"]) -> float:
        """The level at the surface. Raises RunError where the values nowhere exceed it."""
        something = self.values[self.values > EMPTY]
        level = (something.mean(dtype=np.float64) if len(something) else EMPTY) if threshold == "auto" else threshold
        if self.values.max() < level or not len(something):
            raise RunError(f"mesh: the field is empty: no density above {level:.4g} (largest {self.values.max():.4g}); "
                           "train longer, or lower mesh.threshold")
        return float(level)

    def march(self, level: float) -> tuple[ndarray, ndarray]:
        """Vertices [V, 3] and outward faces [F, 3]; empty space around the grid closes what reaches its border."""
        from skimage.measure import marching_cubes

        level = min(level, np.nextafter(self.values.max(), 0, dtype=np.float32))  # values that are all alike are a full box
        vertices, faces, _, _ = marching_cubes(np.pad(self.values, 1), level, gradient_direction="ascent",
                                               allow_degenerate=False)
        return self.low + (vertices - 1) * self.spacing, faces.astype(np.int32)
