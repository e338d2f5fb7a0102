"""What a renderer and an exporter may ask of a volumetric shape.

Letters: N points.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..core.steps import Streams


@dataclass(frozen=True)
class Values:
    """A field at points, differentiable in its parameters."""

    density: Tensor  # [N] >= 0 per world unit
    features: Tensor  # [N, 3], of which a material makes colours
    normals: Tensor | None  # [N, 3] unit, outward, where asked for


class Field(nn.Module):
    """A density field with three features per point inside the box [-radius, radius]^3."""

    radius: float  # half side of the box, world units
    has_normals: bool  # whether it can be asked for normals

    def at(self, tau: int) -> None:
        """Sets what depends on the step alone (progressive bands)."""

    def density(self, x: Tensor) -> Tensor:
        """Density [N] >= 0 per world unit at points [N, 3]."""
        raise NotImplementedError

    def probe(self, x: Tensor, normals: bool) -> tuple[Tensor, Callable[[Tensor | slice], Values]]:
        """Density [N] at points [N, 3], not differentiable, and a function that returns what it takes to render some of
        them (a mask or indices, or a slice): most work is done once, and backward only where it counts."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Features [N, 3] at points [N, 3]."""
        return self.probe(x, normals=False)[1](slice(None)).features

    def occupancy(self) -> Tensor | None:
        """Densities [R, R, R] of the cells of the box, index x y z, or None: everything may be occupied."""
        return None

    def riding(self) -> dict[str, Tensor]:
        """The float32 buffers that ride along with the trained numbers."""
        return {}

    def due(self, tau: int) -> bool:
        """Whether the riding state is renewed for step tau."""
        return False

    def refresh(self, tau: int, step: float, rng: Streams) -> None:
        """Renews the riding state in place for step tau and a renderer that samples every `step` world units."""
