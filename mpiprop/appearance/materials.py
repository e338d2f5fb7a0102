"""Colours of surface points from their features and a light (DreamFusion, section 3.2, "Shading").

Letters: S points.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mpiprop.core.streams import Streams, uniform

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "scale_-11_01": lambda raw: raw / 2 + 0.5,
    "padded_sigmoid": lambda raw: 1.002 * torch.sigmoid(raw) - 0.001}  # reaches 0 and 1 (Mip-NeRF)
INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": partial(torch.logit, eps=1 / 512), "scale_-11_01": lambda colour: 2 * colour - 1,
    "padded_sigmoid": lambda colour: torch.logit((colour + 0.001) / 1.002)}
Activation = Literal["sigmoid", "scale_-11_01", "padded_sigmoid"]


class NoMaterial(nn.Module):
    """The features as colours, without shading.

    activation: what makes a colour of the features
    """

    def __init__(self, *, activation: Activation = "sigmoid") -> None:
        super().__init__()
        self.activation, self.inverse = ACTIVATIONS[activation], INVERSES[activation]

    def wants_normals(self, tau: int, rng: Streams | None, unlit: bool = False) -> bool:
        """Whether the shading of step tau reads normals."""
        return False

    def albedo(self, features: Tensor) -> Tensor:
        """Colours [S, 3] of features [S, 3]."""
        return self.activation(features)

    def features(self, albedo: Tensor) -> Tensor:
        """Finite features whose albedo this is, to within half a step of eight bits, in [0, 1]."""
        return self.inverse(albedo)

    def forward(self, features: Tensor, positions: Tensor, normals: Tensor | None, light: Tensor, tau: int,
                rng: Streams | None, unlit: bool = False) -> Tensor:
        """Colours [S, 3] of features [S, 3] at positions [S, 3], lit from `light` [S, 3] unless `unlit`; rng None:
        evaluation."""
        return self.albedo(features)


class Normals(NoMaterial):
    """The normal as a colour: (n + 1) / 2, whatever the light."""

    def __init__(self) -> None:
        super().__init__()

    def wants_normals(self, tau: int, rng: Streams | None, unlit: bool = False) -> bool:
        return True

    def albedo(self, features: Tensor) -> Tensor:
        """Grey [S, 3]: there is no texture."""
        return torch.full((len(features), 3), 0.5, device=features.device)

    def forward(self, features: Tensor, positions: Tensor, normals: Tensor | None, light: Tensor, tau: int,
                rng: Streams | None, unlit: bool = False) -> Tensor:
        if normals is None:
            raise ValueError("Normals shows normals, and got none")
        return normals / 2 + 0.5


class Diffuse(NoMaterial):
    """Lambert's law with a point light and ambient light; a step's batch is shown as albedo, textureless or diffuse.

    activation: what makes an albedo of the features
    ambient: share of ambient light
    soft_shading: draw the share of ambient light anew for every batch
    soft_ambient: range of the shares that soft_shading draws
    ambient_only_steps: steps at first that show the albedo alone
    diffuse_prob: probability that a batch is shaded at all
    textureless_prob: probability that a shaded batch is shown without its texture
    """

    def __init__(self, *, activation: Activation = "sigmoid", ambient: float = 0.1, soft_shading: bool = False,
                 soft_ambient: tuple[float, float] = (0.0, 1.0), ambient_only_steps: int = 1000, diffuse_prob: float = 0.75,
                 textureless_prob: float = 0.5) -> None:
        super().__init__(activation=activation)
        self.ambient, self.soft_shading, self.soft_ambient = ambient, soft_shading, soft_ambient
        self.ambient_only_steps = ambient_only_steps
        self.diffuse_prob, self.textureless_prob = diffuse_prob, textureless_prob

    def shading(self, tau: int, rng: Streams | None) -> Literal["albedo", "textureless", "diffuse"]:
        """How the batch of step tau is shown; rng None: evaluation, lit as the step before it could have been."""
        if (max(tau - 1, 0) if rng is None else tau) < self.ambient_only_steps:
            return "albedo"
        if rng is None:
            return "diffuse"
        if uniform(rng("shading.diffuse"), 1) > self.diffuse_prob:
            return "albedo"
        return "textureless" if uniform(rng("shading.textureless"), 1) < self.textureless_prob else "diffuse"

    def wants_normals(self, tau: int, rng: Streams | None, unlit: bool = False) -> bool:
        return not unlit and self.shading(tau, rng) != "albedo"

    def forward(self, features: Tensor, positions: Tensor, normals: Tensor | None, light: Tensor, tau: int,
                rng: Streams | None, unlit: bool = False) -> Tensor:
        if unlit:
            return self.albedo(features).clamp(0, 1)
        shading = self.shading(tau, rng)
        if shading == "albedo":
            return self.albedo(features)
        if normals is None:
            raise ValueError("Diffuse shades by normals, and got none")
        diffuse = 1 - self.ambient
        if self.soft_shading and rng is not None:
            lo, hi = self.soft_ambient
            diffuse = uniform(rng("shading.soft"), 1, lo=1 - hi, hi=1 - lo).item()
        towards = normalize(light - positions, dim=-1)
        shade = (normals * towards).sum(-1, keepdim=True).clamp(min=0) * diffuse + (1 - diffuse)
        return shade.expand(-1, 3) if shading == "textureless" else self.albedo(features).clamp(0, 1) * shade
