"""Fields on a hash encoding: which of its grids are in use, and the occupancy grid that rides along.

Letters: N points.
"""

import torch
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.shapes.fields.base import Field
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.shapes.fields.occupancy import EVERY, Occupancy


class Gridded(Field):
    """A field that owns an encoding and cells, and brings the encoding's grids into use one after another."""

    encoding: HashEncoding
    cells: Occupancy
    start_level: int
    start_step: int
    update_steps: int

    def at(self, tau: int) -> None:
        more = max(tau - self.start_step, 0) // self.update_steps
        self.encoding.active = min(self.start_level + more, len(self.encoding.levels))

    def occupancy(self) -> Tensor:
        return self.cells.grid()

    def riding(self) -> dict[str, Tensor]:
        return {"cells.values": self.cells.values}

    def due(self, tau: int) -> bool:
        return tau % EVERY == 0

    def refresh(self, tau: int, ray_spacing: float, rng: Streams) -> None:
        self.cells.refresh(lambda unit: self.density((2 * unit - 1) * self.radius), tau, ray_spacing, rng)

    def _unit(self, x: Tensor) -> Tensor:
        """The points [N, 3] as [3, N] in the unit cube."""
        return torch.add(0.5, x.T, alpha=0.5 / self.radius).clamp_(0, 1).contiguous()
