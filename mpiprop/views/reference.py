"""The picture that an object is made from, and the camera that it is taken to have been taken with (Zero-1-to-3).

Letters: S pixels a side.
"""

from dataclasses import dataclass, replace
from math import radians
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Pose:
    """A pinhole camera that looks at the origin."""

    azimuth: float  # rad
    elevation: float  # rad
    distance: float  # world units
    fovy: float  # rad

    @staticmethod
    def front(elevation_deg: float, distance: float, fovy_deg: float) -> "Pose":
        """Returns a camera before the object's front (azimuth 0), from angles in degrees."""
        return Pose(0.0, radians(elevation_deg), distance, radians(fovy_deg))


@dataclass(frozen=True)
class Reference(Pose):
    """A picture, its object in the middle, with what is known of the object's depth and normals there."""

    rgba: Float[Tensor, "S S 4"]  # in [0, 1], not premultiplied; black where nothing is
    depth: Float[Tensor, "S S 1"] | None = None  # in [0, 1], farther is more
    normal: Float[Tensor, "S S 3"] | None = None  # parts in [-1, 1] towards the viewer, upwards and to the left
    sha256: str = ""  # of the files it was read from

    def to(self, device: torch.device) -> "Reference":
        """The same picture on `device`."""
        tensors: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def resized(self, size: int) -> "Reference":
        """The same picture with `size` pixels a side, each the mean of what it covers, colours weighed by opacity."""
        if size == len(self.rgba):
            return self
        premultiplied = torch.cat([self.rgba[..., :3] * self.rgba[..., 3:], self.rgba[..., 3:]], -1)
        return replace(self, rgba=unmultiplied(_scaled(premultiplied, size)),
                       depth=None if self.depth is None else _scaled(self.depth, size),
                       normal=None if self.normal is None else _scaled(self.normal, size))


def unmultiplied(picture: Float[Tensor, "H W 4"]) -> Float[Tensor, "H W 4"]:
    """RGBA of a picture whose colours were multiplied by its opacity; black where that is zero."""
    alpha = picture[..., 3:].clamp(0, 1)
    rgb = torch.where(alpha > 0, picture[..., :3] / alpha.clamp(min=1e-6), 0)
    return torch.cat([rgb.clamp(0, 1), alpha], -1)


def _scaled(picture: Tensor, size: int) -> Tensor:
    mode = "area" if size < len(picture) else "bilinear"
    return interpolate(picture.movedim(-1, 0)[None], (size, size), mode=mode)[0].movedim(0, -1)
