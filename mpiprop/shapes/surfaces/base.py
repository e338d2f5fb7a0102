"""Shapes that are a mesh.

Letters: N points, M vertices, F faces, U vertices of an atlas, S x S texels.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mpiprop.shapes.base import Shape


@dataclass(frozen=True)
class Skin:
    """A texture and where the faces of a mesh are on it."""

    uv: Float[Tensor, "U 2"]  # in [0, 1]: (0, 0) is the outer corner of the first texel, u along rows, v down
    corners: Int[Tensor, "F 3"]  # int64 into U
    features: Float[Tensor, "S S 3"]  # differentiable


class Surface(Shape):
    """A closed mesh with features in space, drawn by rasterisation (`render.mesh.Mesh`). Write `surface` and `features`."""

    has_normals = True

    def surface(self) -> tuple[Float[Tensor, "M 3"], Int[Tensor, "F 3"]]:
        """Returns vertices (world units), differentiable where they train, and faces (int64), counterclockwise seen from
        outside."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Returns features at points of the surface, of which a material makes colours."""
        raise NotImplementedError


class TexturedSurface(Surface):
    """A mesh whose features are a texture, and which begins with the mesh of the stage before. Write `surface`, `skin` and
    `take`; `features` is never called."""

    handover_mesh: dict[str, Any]  # keyword arguments of `io.mesh.extract` for the mesh that it begins with

    def skin(self) -> Skin:
        """Returns the texture and where the faces are on it."""
        raise NotImplementedError

    def take(self, vertices: Float[Tensor, "M 3"], faces: Int[Tensor, "F 3"], uv: Float[Tensor, "U 2"],
             corners: Int[Tensor, "F 3"], features: Float[Tensor, "S S 3"]) -> None:
        """Becomes this mesh: vertices, faces, and the skin of `uv`, `corners` and `features`."""
        raise NotImplementedError
