"""A picture of the object from one side as the condition of views from others (Zero-1-to-3, Liu et al. 2023).

Letters: B views, C numbers of a token, latents [4, h, w].
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import pi
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.conditioning.base import Condition
from mpiprop.core.errors import UserError
from mpiprop.priors.base import Prior
from mpiprop.views.cameras import Views
from mpiprop.views.reference import Reference


def pose(azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"], distance: Float[Tensor, " B"],
         azimuth0: Float[Tensor, ""], elevation0: Float[Tensor, ""], distance0: Float[Tensor, ""]) -> Float[Tensor, "B 4"]:
    """Returns the pose of cameras relative to the picture's (0): (d polar angle, sin d azimuth, cos d azimuth,
    d distance).

    The polar angle is measured from +z (pi/2 - elevation), so a camera above the picture's has a negative first number;
    azimuth turns from the front towards +y, the object's left, as everywhere here, so a camera further left has a
    positive second one. These are the signs of Zero-1-to-3's training data, whose world is z up and right-handed too.
    """
    turn = azimuth - azimuth0
    return torch.stack([elevation0 - elevation, turn.sin(), turn.cos(), distance - distance0], -1)


class PicturePrior(Prior, Protocol):
    """A prior that reads a picture and the pose of each view."""

    polar: bool  # whether the pose's fourth number is the picture's polar angle

    def see(self, picture: Reference) -> tuple[Float[Tensor, "5 C"], Float[Tensor, "4 h w"]]:
        """Returns the parts of the token and the picture's latents, as in `PictureConditions`."""


class FromPicture:
    """For Zero-1-to-3: the picture that the run starts from, and the pose of each view relative to it."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def check(self, prior: Prior) -> None:
        """Raises UserError for a prior that reads no picture."""
        if "picture" not in prior.reads:
            raise UserError("shows a picture, which this prior does not look at; use Zero123")

    def strings(self, prompt: str) -> list[str]:
        """Returns no text: the prompt is not read."""
        return []

    def encode(self, prior: PicturePrior, prompt: str, texts: Mapping[str, str]) -> "PictureConditions":
        """Encodes the picture. Raises UserError for a guidance with texts of its own."""
        self.check(prior)
        if texts:
            raise UserError(f"the prior reads no text, and the guidance needs {', '.join(texts)}; take another guidance")
        token, latents = prior.see(self.reference)
        camera = torch.tensor([self.reference.azimuth, self.reference.elevation, self.reference.distance])
        return PictureConditions(token, latents, camera, prior.polar)


@dataclass(frozen=True)
class PictureConditions:
    """An encoded picture. The layer that makes a token is linear: the picture's part is one vector, the pose's a matrix."""

    token: Float[Tensor, "5 C"]  # the picture's part, and what each number of the pose adds
    latents: Float[Tensor, "4 h w"]  # the mode of the VAE's posterior, not scaled
    camera: Float[Tensor, "3"]  # azimuth (rad), elevation (rad) and distance (world units) of the picture's
    polar: bool  # whether the pose's fourth number is the picture's polar angle (Stable Zero123)

    def to(self, device: torch.device | str) -> "PictureConditions":
        """Returns the same on a device."""
        return replace(self, token=self.token.to(device), latents=self.latents.to(device))

    def __call__(self, views: Views) -> Condition:
        """Returns a token and the picture for each view; the unconditional inputs are zeros."""
        B, device = len(views), self.token.device
        relative = pose(views.azimuth, views.elevation, views.distance, *self.camera)
        if self.polar:
            relative[:, 3] = pi / 2 - self.camera[1]
        token = (self.token[0] + relative.to(device) @ self.token[1:])[:, None]
        image = self.latents.expand(B, *self.latents.shape)
        nothing = {"text": torch.zeros_like(token), "image": torch.zeros_like(image)}
        return Condition({"text": token, "image": image}, nothing, (), token.new_zeros(0, B))
