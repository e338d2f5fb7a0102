"""The field that ScaleDreamer's generators make: a signed distance with VolSDF's density (Yariv et al. 2021, eq. 2).

Letters: N points.
"""

from collections.abc import Callable
from math import exp

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.shapes.fields.base import DistanceField, RaySteps, Values
from mpiprop.shapes.fields.sdf import volsdf

STEP = 0.01  # of the differences that normals are made of (world units)
SHARPNESS = exp(10 * 0.340119)  # of the density: 30 inside, per world unit


class GeneratedSDF(DistanceField):
    """A sphere, changed by a network.

    raw: points [N, 3] to distances beside the sphere's and three features [4, N]
    radius: half side of the box (world units)
    sphere: radius of the sphere (world units)
    """

    has_normals = True

    def __init__(self, raw: Callable[[Tensor], Tensor], radius: float, sphere: float) -> None:
        super().__init__()
        self.raw, self.radius, self.sphere = raw, radius, sphere

    def distance(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        return self.raw(x)[0] + self._ball(x)

    def features(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        return self.raw(x)[1:].T

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        return self._dense(self.distance(x))

    def probe(self, x: Float[Tensor, "N 3"], normals: bool, along: RaySteps | None = None
              ) -> tuple[Float[Tensor, " N"], Callable[[Tensor | slice], Values]]:
        with torch.no_grad():
            density = self.density(x)
        return density, lambda which: self.evaluate(x[which], normals)

    def evaluate(self, x: Float[Tensor, "N 3"], normals: bool) -> Values:
        raw = self.raw(x)
        distance, features = raw[0] + self._ball(x), raw[1:].T
        if not normals:
            return Values(self._dense(distance), features, None)
        slope = self._slope(x, distance)
        unit = slope * slope.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt()
        return Values(self._dense(distance), features, unit, slope)

    def _slope(self, x: Tensor, distance: Tensor) -> Tensor:
        """The gradient [N, 3] by forward differences, the neighbours clamped to the box."""
        ahead = (x + STEP * torch.eye(3, device=x.device)[:, None]).clamp(-self.radius, self.radius)
        return ((self.distance(ahead.view(-1, 3)).view(3, -1) - distance) / STEP).T

    def _ball(self, x: Tensor) -> Tensor:
        return x.square().sum(1).clamp(min=1e-24).sqrt() - self.sphere

    def _dense(self, distance: Tensor) -> Tensor:
        return volsdf(distance, distance.new_tensor(SHARPNESS))
