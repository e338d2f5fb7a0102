"""A density field on a hash grid: DreamFusion's and Magic3D's coarse shape (Poole et al. 2022, section 3.2).

Letters: N points.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mpiprop.core.errors import positive
from mpiprop.core.streams import Streams
from mpiprop.shapes.fields.base import RaySteps, Values
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.shapes.fields.gridded import Gridded
from mpiprop.shapes.fields.networks import MLP, trunc_exp
from mpiprop.shapes.fields.occupancy import Occupancy

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": softplus, "exp": torch.exp, "trunc_exp": trunc_exp}


class HashGrid(Gridded):
    """Density and three features from a hash encoding and two small networks, with a blob of matter to start from.

    radius: half side of the box that holds everything (world units)
    levels: grids in the pyramid, of 2 features each
    log2_table: binary logarithm of the most entries a grid may have
    base_resolution: cells a side of the coarsest grid
    growth: resolution of a grid over that of the next coarser one
    start_level: grids in use from the start; `levels` or more: all
    start_step: step from which on further grids come into use
    update_steps: steps from one further grid to the next
    hidden: width of the networks' hidden layers
    hidden_layers: hidden layers in each network
    activation: what makes the raw density positive
    blob: raw density added, "magic3d": scale (1 - |x| / std), "dreamfusion": scale exp(-|x|^2 / 2 std^2)
    blob_scale: height of the blob
    blob_std: radius of the blob (world units)
    normal: where normals come from: the density's exact gradient, its forward differences, or nowhere
    normal_step: step of the forward differences (world units)
    occupancy_resolution: cells a side of the grid that tells where matter is
    occupancy_decay: factor on what a cell remembers at each of its renewals
    backend: "torch" (any device) or "tcnn" (tiny-cuda-nn, CUDA), whose gradients differ in their last bits each time; the
        numbers mean the same; auto: torch
    """

    def __init__(self, rng: Streams, *, radius: float = 2.0, levels: int = 16, log2_table: int = 19,
                 base_resolution: int = 16, growth: float = 1.447269237440378, start_level: int = 8,
                 start_step: int = 2000, update_steps: int = 500, hidden: int = 64, hidden_layers: int = 1,
                 activation: Literal["softplus", "exp", "trunc_exp"] = "softplus",
                 blob: Literal["magic3d", "dreamfusion", "none"] = "magic3d", blob_scale: float = 10.0,
                 blob_std: float = 0.5, normal: Literal["analytic", "finite_difference", "none"] = "analytic",
                 normal_step: float = 0.01, occupancy_resolution: int = 32, occupancy_decay: float = 0.95,
                 backend: Literal["auto", "torch", "tcnn"] = "auto") -> None:
        super().__init__()
        positive(radius=radius, hidden=hidden, hidden_layers=hidden_layers, start_level=start_level,
                 update_steps=update_steps, occupancy_resolution=occupancy_resolution)
        self.radius = radius
        self.encoding = HashEncoding(rng.of("encoding"), levels, log2_table, base_resolution, growth, backend)
        widths = (self.encoding.channels, *hidden_layers * (hidden,))
        self.density_network = MLP(rng.of("density"), *widths, 1)
        self.feature_network = MLP(rng.of("features"), *widths, 3)
        self.start_level, self.start_step, self.update_steps = start_level, start_step, update_steps
        self.activation, self.blob = ACTIVATIONS[activation], blob
        self.blob_scale, self.blob_std = blob_scale, blob_std
        self.normal, self.normal_step, self.has_normals = normal, normal_step, normal != "none"
        self.at(0)
        self.cells = Occupancy(occupancy_resolution, occupancy_decay)
        self.refresh(0, 0.0, rng)

    def density(self, x: Tensor) -> Tensor:
        return self.activation(self.density_network(self.encoding(self._unit(x)))[0] + self._blob(x)[0])

    def probe(self, x: Tensor, normals: bool, along: RaySteps | None = None
              ) -> tuple[Tensor, Callable[[Tensor | slice], Values]]:
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
