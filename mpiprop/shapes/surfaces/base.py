"""Shapes that are a mesh.

Letters: N points, M vertices, F faces, U vertices of an atlas, S x S texels.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mpiprop.shapes.base import Shape


@dataclass(frozen=True)
class Skin:
    """A texture and where the faces of a mesh are on it."""

    uv: Tensor  # [U, 2] in [0, 1]: (0, 0) is the outer corner of the first texel, u along rows, v down
    corners: Tensor  # [F, 3] int64 into U
    features: Tensor  # [S, S, 3], differentiable


class Surface(Shape):
    """A closed mesh with features in space, drawn by rasterisation (`render.mesh.Mesh`). Write `surface` and `features`."""

    has_normals = True

    def surface(self) -> tuple[Tensor, Tensor]:
        """Returns vertices [M, 3] (world units), differentiable where they train, and faces [F, 3] (int64), counterclockwise
        seen from outside."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Returns features [N, 3] at points [N, 3] of the surface, of which a material makes colours."""
        raise NotImplementedError


class TexturedSurface(Surface):
    """A mesh whose features are a texture, and which begins with the mesh of the stage before. Write `surface`, `skin` and
    `take`; `features` is never called."""

    handover_mesh: dict[str, Any]  # keyword arguments of `io.mesh.extract` for the mesh that it begins with

    def skin(self) -> Skin:
        """Returns the texture and where the faces are on it."""
        raise NotImplementedError

    def take(self, vertices: Tensor, faces: Tensor, uv: Tensor, corners: Tensor, features: Tensor) -> None:
        """Becomes this mesh: vertices [M, 3], faces [F, 3], and the skin of `uv`, `corners` and `features`."""
        raise NotImplementedError
