"""Fields on a hash encoding: which of its grids are in use, and the occupancy grid that rides along.

Letters: N points.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.core.errors import positive
from mpiprop.core.streams import Streams
from mpiprop.shapes.fields.base import Field
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.shapes.fields.occupancy import EVERY, Occupancy


class Gridded(Field):
    """A hash encoding, whose grids come into use one after another, and cells that tell where matter is.

    Write `density`, and build the networks that read the encoding, of the widths `widths` and a last one. Then call `refresh`.

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
    occupancy_resolution: cells a side of the grid that tells where matter is
    occupancy_decay: factor on what a cell remembers at each of its renewals
    backend: "torch" (any device) or "tcnn" (tiny-cuda-nn, CUDA), whose gradients differ in their last bits each time; the
        numbers mean the same; auto: torch
    """

    def __init__(self, rng: Streams, *, radius: float = 2.0, levels: int = 16, log2_table: int = 19,
                 base_resolution: int = 16, growth: float = 1.447269237440378, start_level: int = 8, start_step: int = 2000,
                 update_steps: int = 500, hidden: int = 64, hidden_layers: int = 1, occupancy_resolution: int = 32,
                 occupancy_decay: float = 0.95, backend: Literal["auto", "torch", "tcnn"] = "auto") -> None:
        super().__init__()
        positive(radius=radius, hidden=hidden, hidden_layers=hidden_layers, start_level=start_level,
                 update_steps=update_steps, occupancy_resolution=occupancy_resolution)
        self.radius = radius
        self.encoding = HashEncoding(rng.of("encoding"), levels, log2_table, base_resolution, growth, backend)
        self.widths = (self.encoding.channels, *hidden_layers * (hidden,))
        self.start_level, self.start_step, self.update_steps = start_level, start_step, update_steps
        self.cells = Occupancy(occupancy_resolution, occupancy_decay)

    def at(self, tau: int) -> None:
        more = max(tau - self.start_step, 0) // self.update_steps
        self.encoding.active = min(self.start_level + more, len(self.encoding.levels))

    def occupancy(self) -> Float[Tensor, "R R R"]:
        return self.cells.grid()

    def riding(self) -> dict[str, Tensor]:
        return {"cells.values": self.cells.values}

    def due(self, tau: int) -> bool:
        return tau % EVERY == 0

    def refresh(self, tau: int, ray_spacing: float, rng: Streams) -> None:
        self.cells.refresh(lambda unit: self.density((2 * unit - 1) * self.radius), tau, ray_spacing, rng)

    def renew(self, rng: Streams) -> None:
        """Looks at all cells anew, after the field has been changed as a whole."""
        self.cells.values.zero_()
        self.refresh(0, 0.0, rng)

    def _unit(self, x: Tensor) -> Tensor:
        """The points [N, 3] as [3, N] in the unit cube."""
        return torch.add(0.5, x.T, alpha=0.5 / self.radius).clamp_(0, 1).contiguous()
