"""A density field on a hash grid: DreamFusion's and Magic3D's coarse shape (Poole et al. 2022, section 3.2).

Letters: N points.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from mpiprop.core.streams import Streams
from mpiprop.shapes.fields.base import RaySteps, Values
from mpiprop.shapes.fields.gridded import Gridded
from mpiprop.shapes.fields.networks import MLP, trunc_exp

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": softplus, "exp": torch.exp, "trunc_exp": trunc_exp}


class HashGrid(Gridded):
    """Density and three features from a hash encoding and two small networks, with a blob of matter to start from.

    activation: what makes the raw density positive
    blob: raw density added, "magic3d": scale (1 - |x| / std), "dreamfusion": scale exp(-|x|^2 / 2 std^2)
    blob_scale: height of the blob
    blob_std: radius of the blob (world units)
    normal: where normals come from: the density's exact gradient, its forward differences, or nowhere
    normal_step: step of the forward differences (world units)
    """

    def __init__(self, rng: Streams, *, activation: Literal["softplus", "exp", "trunc_exp"] = "softplus",
                 blob: Literal["magic3d", "dreamfusion", "none"] = "magic3d", blob_scale: float = 10.0,
                 blob_std: float = 0.5, normal: Literal["analytic", "finite_difference", "none"] = "analytic",
                 normal_step: float = 0.01, **keys: Any) -> None:
        super().__init__(rng, **keys)
        self.density_network = MLP(rng.of("density"), *self.widths, 1)
        self.feature_network = MLP(rng.of("features"), *self.widths, 3)
        self.activation, self.blob = ACTIVATIONS[activation], blob
        self.blob_scale, self.blob_std = blob_scale, blob_std
        self.normal, self.normal_step, self.has_normals = normal, normal_step, normal != "none"
        self.at(0)
        self.refresh(0, 0.0, rng)

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        return self.activation(self.density_network(self.encoding(self._unit(x)))[0] + self._blob(x)[0])

    def probe(self, x: Float[Tensor, "N 3"], normals: bool, along: RaySteps | None = None
              ) -> tuple[Float[Tensor, " N"], Callable[[Tensor | slice], Values]]:
        unit = self._unit(x)
        analytic = normals and self.normal == "analytic"
        read = self.encoding.read(unit, analytic)
        with torch.no_grad():
            density = self.activation(self.density_network(read[0])[0] + self._blob(x)[0])

        def values(which: Tensor | slice) -> Values:
            some = x[which]
            code, pull = self.encoding.attach(unit[:, which], read[:, :, which])
            blob, slope = self._blob(some)
            if not analytic:
                density = self.activation(self.density_network(code)[0] + blob)
                normal = self._differences(some, density) if normals else None
            else:
                # The activation increases, so the raw density's gradient has the direction, and it never underflows.
                raw, weights = self.density_network.value_and_gradient(code)
                density = self.activation(raw + blob)
                normal = _outward(pull(weights) / (2 * self.radius) + slope)
            return Values(density, self.feature_network(code).T, normal)
        return density, values

    def _differences(self, x: Tensor, density: Tensor) -> Tensor:
        """Normals [N, 3] from the density at points [N, 3] and at one step along each axis, inside the box."""
        steps = torch.eye(3, device=x.device)[:, None] * self.normal_step
        ahead = self.density((x + steps).clamp(-self.radius, self.radius).view(-1, 3)).view(3, -1)
        return _outward(ahead - density)

    def _blob(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The blob's raw density [N] and its gradient [3, N]."""
        if self.blob == "none":
            return 0.0, 0.0
        x = x.T.contiguous()
        squared = x.square().sum(0)
        if self.blob == "magic3d":
            distance = squared.sqrt()
            return (self.blob_scale * (1 - distance / self.blob_std),
                    x * (-self.blob_scale / self.blob_std / distance.clamp(min=1e-9)))
        blob = self.blob_scale * torch.exp(-0.5 * squared / self.blob_std ** 2)
        return blob, x * (-blob / self.blob_std ** 2)


def _outward(slope: Tensor) -> Tensor:
    """Unit normals [N, 3] down a slope [3, N]; many times faster here than torch's norms along the first axis."""
    return (-slope * slope.square().sum(0).clamp(min=1e-24).rsqrt()).T
