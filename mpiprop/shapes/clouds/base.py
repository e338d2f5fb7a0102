"""Shapes that are a cloud of 3D Gaussians.

Letters: N Gaussians, Q points, K spherical harmonics.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.optim.rollout import Structure
from mpiprop.shapes.base import Shape


@dataclass(frozen=True)
class Splats:
    """N 3D Gaussians as a rasteriser takes them: activated, in world units, differentiable."""

    means: Float[Tensor, "N 3"]
    scales: Float[Tensor, "N 3"]  # standard deviations along the axes
    rotations: Float[Tensor, "N 4"]  # unit quaternions w x y z, from the axes to the world
    opacities: Float[Tensor, " N"]  # in (0, 1)
    harmonics: Float[Tensor, "N K 3"]  # of real spherical harmonics, K = 1, 4, 9 or 16; colour is 0.5 + their sum


class Cloud(Shape):
    """Gaussians, drawn by splatting (`render.splat.Splat`), whose number may change while they train.

    Every parameter has a row per Gaussian. Write `splats` to be drawn, and `solid` and `colours` to be exported as a mesh.
    """

    most_points: int = 0  # the most Gaussians that it may come to have; 0: as many as now

    def splats(self) -> Splats:
        """Returns the Gaussians."""
        raise NotImplementedError

    def solid(self, x: Float[Tensor, "Q 3"]) -> Float[Tensor, " Q"]:
        """Returns values at points that exceed an iso level inside the surface."""
        raise NotImplementedError

    def colours(self, x: Float[Tensor, "Q 3"]) -> Float[Tensor, "Q 3"]:
        """Returns colours in [0, 1] at points, without what depends on the direction."""
        raise NotImplementedError

    def rows(self) -> dict[str, Tensor]:
        """Returns the raw numbers, a row per Gaussian, as `clouds.ply.write` takes them."""
        raise NotImplementedError

    def structure(self, streams: Callable[[int], Streams]) -> Structure | None:
        """Returns what adds and removes Gaussians, given the random streams of each step; None: nothing does."""
        return None

    def ends(self, T: int) -> list[int]:
        """Returns the steps, ascending, that no window reaches across; the last is T, the number of steps."""
        return [T]
