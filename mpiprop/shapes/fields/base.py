"""Shapes that are a density in space, and those whose density follows from a signed distance.

Letters: N points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.shapes.base import Shape


@dataclass(frozen=True)
class Values:
    """A field at points, differentiable in its parameters."""

    density: Float[Tensor, " N"]  # >= 0 per world unit
    features: Float[Tensor, "N 3"]  # of which a material makes colours
    normals: Float[Tensor, "N 3"] | None  # unit, outward, where asked for
    slope: Float[Tensor, "N 3"] | None = None  # gradient of a signed distance, where normals are asked for


@dataclass(frozen=True)
class RaySteps:
    """The steps of equal length along rays of which points are the midpoints."""

    directions: Float[Tensor, "N 3"]  # unit, away from the camera
    length: float  # world units


class Field(Shape):
    """A density and features in space, drawn by ray marching (`render.volume.Volume`).

    Write `density` and `features`. A field that can compute both at once, or that has normals, also writes `probe`, which is
    all that the renderer calls. Nothing outside [-radius, radius]^3 is asked for.
    """

    level: float | None = None  # iso level of `solid` at the surface; None: the user chooses it

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Returns densities >= 0 per world unit at points."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Returns features at points."""
        return self.evaluate(x, normals=False).features

    def probe(self, x: Float[Tensor, "N 3"], normals: bool, along: RaySteps | None = None
              ) -> tuple[Float[Tensor, " N"], Callable[[Tensor | slice], Values]]:
        """Returns densities at points, without gradient, and a function that evaluates a selection of the points
        (a mask, indices or a slice) with gradient. The renderer drops most points after the first part.

        normals: whether the values need normals; only asked for where `has_normals`
        along: the rays that the points lie on. A density that depends on the direction reads them in the second part; its
            first part is then an upper bound
        """
        with torch.no_grad():
            density = self.density(x)
        return density, lambda which: Values(self.density(x[which]), self.features(x[which]), None)

    def evaluate(self, x: Float[Tensor, "N 3"], normals: bool) -> Values:
        """Returns the field at points, as the second part of `probe`; to be written where it can do without the first."""
        return self.probe(x, normals)[1](slice(None))

    def solid(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Returns values at points that exceed the iso level inside the surface."""
        return self.density(x)

    def occupancy(self) -> Float[Tensor, "R R R"] | None:
        """Returns densities of the cells of the box, index x y z; None: no cell is known to be empty."""
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

    def distance(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Returns signed distances at points (world units)."""
        raise NotImplementedError

    def solid(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        return -self.distance(x)
