"""What every shape has in common: trained numbers in a box, and how a stage begins with the shape of the one before.

A shape is one of four kinds, each a class to derive from: a density in space (`fields.base.Field`), a mesh
(`surfaces.base.Surface`), a cloud of Gaussians (`clouds.base.Cloud`), or a network that makes a field from a prompt
(`generators.base.Generator`). Code that treats kinds differently asks which one a shape is with `isinstance`.
"""

import torch
from torch import Tensor, nn

from mpiprop.core.errors import UserError


class Shape(nn.Module):
    """The base class of all kinds. Derive from a kind, not from this class.

    The parameters of the module are what trains; their first name is their learning-rate group ("encoding.table" is in the
    group "geometry.encoding").
    """

    radius: float  # half side of the box [-radius, radius]^3 that holds the object (world units)
    has_normals: bool = False  # whether it can be asked for normals

    def at(self, tau: int) -> None:
        """Sets what depends on the step alone, such as the levels of an encoding that are in use."""

    def riding(self) -> dict[str, Tensor]:
        """Returns the float32 buffers that are carried and stored with the trained numbers, by name."""
        return {}

    def begin(self) -> None:
        """Fits the numbers to a mesh file, if there is one. Called on rank 0 alone, and only for a stage that begins with
        nothing before it, since it can take long."""

    def fits(self, other: "Shape") -> bool:
        """Whether another shape's numbers have the same names and sizes."""
        mine, theirs = ({name: tensor.shape for name, tensor in _tensors(shape).items()} for shape in (self, other))
        return mine == theirs

    def check_start(self, previous: "Shape") -> None:
        """Raises UserError where it cannot begin with a previous stage's shape: by default one of another layout."""
        if not self.fits(previous):
            raise UserError(f"this stage's shape, a {type(self).__name__}, is laid out otherwise than the "
                            f"{type(previous).__name__} before it: give both the same keys, or use a DMTet, which "
                            "begins with any surface")

    @torch.no_grad()
    def begin_with(self, previous: "Shape") -> None:
        """Takes over the numbers of a previous stage's shape. Raises what `check_start` does."""
        self.check_start(previous)
        theirs = _tensors(previous)
        for name, tensor in _tensors(self).items():
            tensor.copy_(theirs[name])


def _tensors(shape: Shape) -> dict[str, Tensor]:
    return {**dict(shape.named_parameters()), **shape.riding()}
