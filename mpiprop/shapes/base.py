"""What a renderer and an exporter may ask of a shape.

Letters: N points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.optim.rollout import Structure


@dataclass(frozen=True)
class Values:
    """A field at points, differentiable in its parameters."""

    density: Tensor  # [N] >= 0 per world unit
    features: Tensor  # [N, 3], of which a material makes colours
    normals: Tensor | None  # [N, 3] unit, outward, where asked for
    slope: Tensor | None = None  # [N, 3] gradient of a signed distance, as long as it is, where normals are


@dataclass(frozen=True)
class Steps:
    """The equal steps of rays whose middles are points."""

    directions: Tensor  # [N, 3] unit, away from the camera
    length: float  # world units


@dataclass(frozen=True)
class Splats:
    """N 3D Gaussians as a rasteriser takes them: activated, world units, differentiable."""

    means: Tensor  # [N, 3]
    scales: Tensor  # [N, 3] standard deviations along the axes
    rotations: Tensor  # [N, 4] unit quaternions w x y z, from the axes to the world
    opacities: Tensor  # [N] in (0, 1)
    harmonics: Tensor  # [N, K, 3] coefficients of real spherical harmonics, K = 1, 4, 9 or 16; colour is 0.5 + their sum


def matrices(rotations: Tensor) -> Tensor:
    """The rotations [3 (world), 3 (axis), N] of unit quaternions w x y z [N, 4]."""
    w, x, y, z = rotations.unbind(-1)
    return torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]).view(3, 3, -1)


@dataclass(frozen=True)
class Skin:
    """Features of a mesh as a picture, S texels a side, and where the corners of its F faces are on it."""

    uv: Tensor  # [U, 2] in [0, 1]: (0, 0) is the outer corner of the first texel, u along rows, v down
    corners: Tensor  # [F, 3] int64 into U
    features: Tensor  # [S, S, 3], differentiable


class Shape(nn.Module):
    """What is optimised: features per point inside the box [-radius, radius]^3, and where matter is."""

    radius: float  # half side of the box, world units
    has_normals: bool  # whether it can be asked for normals
    most_points: int = 0  # of a cloud that grows, at its largest
    wants: dict[str, Any] | None = None  # keys of `io.mesh.extract`, if it begins with a textured mesh of the stage before

    def at(self, tau: int) -> None:
        """Sets what depends on the step alone (progressive bands)."""

    def features(self, x: Tensor) -> Tensor:
        """Features [N, 3] at points [N, 3]."""
        raise NotImplementedError

    def surface(self) -> tuple[Tensor, Tensor] | None:
        """Vertices [M, 3] (world units), differentiable, and faces [F, 3] (int64) of a closed mesh, counterclockwise seen
        from outside; None for a field."""
        return None

    def skin(self) -> Skin | None:
        """The picture on the surface of a shape whose features are on one; None of a shape that has them in space."""
        return None

    def splats(self) -> Splats | None:
        """The Gaussians of a cloud of them; None for anything else."""
        return None

    def cloud(self) -> dict[str, Tensor] | None:
        """The raw numbers of a cloud of Gaussians, a row each, as clouds.ply.write takes them; None for anything else."""
        return None

    def structure(self, streams: Callable[[int], Streams]) -> Structure | None:
        """What changes the points of a cloud, given the random streams of each step; None for anything else."""
        return None

    def ends(self, T: int) -> list[int]:
        """The steps, ascending, beyond which no window reaches, the last of them T."""
        return [T]

    def check_start(self, previous: "Shape") -> None:
        """Raises UserError where it cannot begin with a previous stage's shape: by default with one of another kind, or of
        other sizes."""
        mine, theirs = ({**dict(shape.named_parameters()), **shape.riding()} for shape in (self, previous))
        if {name: tensor.shape for name, tensor in mine.items()} != {name: tensor.shape for name, tensor in theirs.items()}:
            raise UserError(f"this stage's shape, a {type(self).__name__}, is laid out otherwise than the "
                            f"{type(previous).__name__} before it: give both the same keys, or use a DMTet, which "
                            "begins with any surface")

    @torch.no_grad()
    def begin_with(self, previous: "Shape") -> None:
        """Takes over the numbers of a previous stage's shape. Raises what `check_start` does."""
        self.check_start(previous)
        mine, theirs = ({**dict(shape.named_parameters()), **shape.riding()} for shape in (self, previous))
        for name in mine:
            mine[name].copy_(theirs[name])

    def riding(self) -> dict[str, Tensor]:
        """The float32 buffers that ride along with the trained numbers."""
        return {}

    def due(self, tau: int) -> bool:
        """Whether the riding state is renewed for step tau."""
        return False

    def refresh(self, tau: int, step: float, rng: Streams) -> None:
        """Renews the riding state in place for step tau and a renderer that samples every `step` world units."""


class Field(Shape):
    """A density in space."""

    level: float | None = None  # of `solid` at the surface, where that is no matter of choice

    def density(self, x: Tensor) -> Tensor:
        """Density [N] >= 0 per world unit at points [N, 3]."""
        raise NotImplementedError

    def solid(self, x: Tensor) -> Tensor:
        """What [N] exceeds a level inside the surface, at points [N, 3]."""
        return self.density(x)

    def probe(self, x: Tensor, normals: bool, along: Steps | None = None
              ) -> tuple[Tensor, Callable[[Tensor | slice], Values]]:
        """Density [N] at points [N, 3], not differentiable, and a function that returns what it takes to render some of
        them (a mask or indices, or a slice): most work is done once, and backward only where it counts.

        `along` tells of the rays that the points lie on. Densities that depend on the direction read it in the second part;
        the first is then that of a ray that meets the surface head-on, which is never less.
        """
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        return self.probe(x, normals=False)[1](slice(None)).features

    def occupancy(self) -> Tensor | None:
        """Densities [R, R, R] of the cells of the box, index x y z, or None: everything may be occupied."""
        return None
