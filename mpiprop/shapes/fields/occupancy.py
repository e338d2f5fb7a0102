"""Which cells of the box hold matter: a decayed maximum of the density seen in each (Instant-NGP, section E.2).

Letters: R cells a side. The densities are state that rides along with theta; whoever steps theta renews them, so that
the gradient of a step stays a function of theta, tau and the seed.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mpiprop.core.streams import Streams, uniform

WARMUP = 256  # steps during which every cell is looked at
EVERY = 16  # steps between renewals


class Occupancy(nn.Module):
    """Densities of the cells of [0, 1]^3."""

    def __init__(self, resolution: int, decay: float) -> None:
        super().__init__()
        self.resolution, self.decay = resolution, decay
        self.values = nn.Buffer(torch.zeros(resolution ** 3))  # [R^3], index x y z

    def grid(self) -> Float[Tensor, "R R R"]:
        """The densities of the cells, index x y z."""
        return self.values.view(3 * (self.resolution,))

    @torch.no_grad()
    def refresh(self, density: Callable[[Tensor], Tensor], tau: int, step: float, rng: Streams) -> None:
        """Renews the densities in place from `density` at one random point [N, 3] in [0, 1]^3 of each cell looked at:
        all cells early on, later a quarter drawn from all and as many from those occupied for steps of that length."""
        cells = torch.arange(len(self.values)) if tau < WARMUP else self._drawn(step, rng)
        corner = torch.stack(torch.unravel_index(cells, 3 * (self.resolution,)), -1)
        points = (corner + uniform(rng("occupancy.jitter"), len(cells), 3)) / self.resolution
        cells = cells.to(self.values.device)
        seen = density(points.to(self.values.device))
        self.values[cells] = torch.maximum(self.values[cells] * self.decay, seen)

    def _drawn(self, step: float, rng: Streams) -> Tensor:
        n = len(self.values) // 4
        anywhere = torch.randint(len(self.values), (n,), generator=rng("occupancy.anywhere"))
        inside = (self.values * step > threshold(self.values, step)).nonzero()[:, 0].cpu()
        if len(inside) > n:
            inside = inside[torch.randint(len(inside), (n,), generator=rng("occupancy.inside"))]
        return torch.cat([anywhere, inside]).unique()


def threshold(densities: Tensor, step: float) -> float:
    """The optical thickness of a step below which a cell counts as empty: 0.01, or the mean of all cells if less."""
    return min(densities.mean().item() * step, 0.01)
