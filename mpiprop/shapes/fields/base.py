"""Shapes that are a density in space, and those whose density follows from a signed distance.

Letters: N points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.shapes.base import Shape


@dataclass(frozen=True)
class Values:
    """A field at points, differentiable in its parameters."""

    density: Tensor  # [N] >= 0 per world unit
    features: Tensor  # [N, 3], of which a material makes colours
    normals: Tensor | None  # [N, 3] unit, outward, where asked for
    slope: Tensor | None = None  # [N, 3] gradient of a signed distance, where normals are asked for


@dataclass(frozen=True)
class RaySteps:
    """The steps of equal length along rays of which points are the midpoints."""

    directions: Tensor  # [N, 3] unit, away from the camera
    length: float  # world units


class Field(Shape):
    """A density and features in space, drawn by ray marching (`render.volume.Volume`).

    Write `density` and `features`. A field that can compute both at once, or that has normals, also writes `probe`, which is
    all that the renderer calls. Nothing outside [-radius, radius]^3 is asked for.
    """

    level: float | None = None  # iso level of `solid` at the surface; None: the user chooses it

    def density(self, x: Tensor) -> Tensor:
        """Returns densities [N] >= 0 per world unit at points [N, 3]."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Returns features [N, 3] at points [N, 3]."""
        return self.probe(x, normals=False)[1](slice(None)).features

    def probe(self, x: Tensor, normals: bool, along: RaySteps | None = None
              ) -> tuple[Tensor, Callable[[Tensor | slice], Values]]:
        """Returns densities [N] at points [N, 3], without gradient, and a function that evaluates a selection of the points
        (a mask, indices or a slice) with gradient. The renderer drops most points after the first part.

        normals: whether the values need normals; only asked for where `has_normals`
        along: the rays that the points lie on. A density that depends on the direction reads them in the second part; its
            first part is then an upper bound
        """
        with torch.no_grad():
            density = self.density(x)
        return density, lambda which: Values(self.density(x[which]), self.features(x[which]), None)

    def solid(self, x: Tensor) -> Tensor:
        """Returns values [N] at points [N, 3] that exceed the iso level inside the surface."""
        return self.density(x)

    def occupancy(self) -> Tensor | None:
        """Returns densities [R, R, R] of the cells of the box, index x y z; None: no cell is known to be empty."""
        return None

    def due(self, tau: int) -> bool:
        """Returns whether the riding state is renewed before step tau."""
        return False

    def refresh(self, tau: int, ray_spacing: float, rng: Streams) -> None:
        """Renews the riding state in place for step tau.

        ray_spacing: distance between the renderer's samples along a ray (world units)
        """


class DistanceField(Field):
    """A field whose density follows from a signed distance, which is zero at the surface and negative inside. Write
    `distance`, too."""

    level = 0.0

    def distance(self, x: Tensor) -> Tensor:
        """Returns signed distances [N] at points [N, 3] (world units)."""
        raise NotImplementedError

    def solid(self, x: Tensor) -> Tensor:
        return -self.distance(x)
