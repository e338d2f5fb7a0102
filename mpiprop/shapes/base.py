"""What a renderer and an exporter may ask of a volumetric shape.

Letters: N points.
"""

from torch import Tensor, nn

from ..core.steps import Streams


class Field(nn.Module):
    """A density field with three features per point inside the box [-radius, radius]^3."""

    radius: float  # half side of the box, world units
    has_normals: bool  # whether `density_and_normal` is available

    def at(self, tau: int) -> None:
        """Sets what depends on the step alone (progressive bands)."""

    def density(self, x: Tensor) -> Tensor:
        """Density [N] >= 0 per world unit at points [N, 3]."""
        raise NotImplementedError

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density [N] and features [N, 3] at points [N, 3]."""
        raise NotImplementedError

    def density_and_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Density [N], features [N, 3] and outward unit normals [N, 3], differentiable, at points [N, 3]."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Features [N, 3] at points [N, 3]."""
        return self.both(x)[1]

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
