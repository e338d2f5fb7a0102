"""A picture of the object from one side as the condition for views from others (Zero-1-to-3, Liu et al. 2023).

B views; E numbers of the picture's embedding, C of a token, latents [4, h, w]. The network is Stable Diffusion's; beside
the noisy latents it is given the picture's, and instead of words one token made of the embedding and the pose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.priors import ldm as original
from mpiprop.priors.base import Prior
from mpiprop.priors.diffusion import Dtype, Latent, to_model
from mpiprop.priors.networks import Network
from mpiprop.priors.ldm import Original
from mpiprop.priors.prompts import Condition, Conditions
from mpiprop.views.cameras import Views
from mpiprop.views.reference import Reference

LATENTS = 4  # channels of a picture's latents, beside those of the noisy ones
PROJECTIONS = {"clip_camera_projection": "proj", "cc_projection": "projection"}  # folders with the pose's layer, its name
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pose(azimuth: Tensor, elevation: Tensor, distance: Tensor, azimuth0: Tensor, elevation0: Tensor,
         distance0: Tensor) -> Tensor:
    """The pose [B, 4] of cameras relative to the picture's (0): (d polar angle, sin d azimuth, cos d azimuth, d distance).

    The polar angle is measured from +z (pi/2 - elevation), so a camera above the picture's has a negative first number;
    azimuth turns from the front towards +y, the object's left, as everywhere here, so a camera further left has a
    positive second one. These are the signs of Zero-1-to-3's training data, whose world is z up and right-handed too.
    """
    turn = azimuth - azimuth0
    return torch.stack([elevation0 - elevation, turn.sin(), turn.cos(), distance - distance0], -1)


class Zero123(Latent):
    """Zero-1-to-3, its XL version, Stable Zero123 and whatever is built like them: shown a picture, told a pose.

    model: "builtin"; a folder or a hub id (owner/name) in the diffusers layout (unet, vae, image_encoder, scheduler, and
        clip_camera_projection or cc_projection); or a checkpoint of its authors (.ckpt, .safetensors)
    base: of a checkpoint: the folder or hub id that has its VAE, image encoder and scheduler
    pose: what the fourth number of a pose is; zero123: the distance less the picture's, as Zero-1-to-3 and its XL version
        were trained; stable: the picture's polar angle, as Stable Zero123 was. The two cannot be told apart by their files
    variant: of the weight files, such as fp16
    revision: of the hub repository
    dtype: of the networks; auto: float16 on CUDA, float32 otherwise
    resolution: to which the picture and renders are resized (pixels); default: what the model was trained at
    """

    def __init__(self, device: torch.device | str, *, model: str = "builtin",
                 base: str = "lambdalabs/sd-image-variations-diffusers", pose: Literal["zero123", "stable"] = "zero123",
                 variant: str | None = None, revision: str | None = None, dtype: Dtype = "auto",
                 resolution: int | None = None) -> None:
        super().__init__(device, original.parts_of(model, variant, revision, "zero123", base), dtype, resolution, LATENTS)
        self.stable = pose == "stable"

    def networks(self) -> dict[str, Network]:
        from transformers import CLIPVisionModelWithProjection

        return super().networks() | {"image_encoder": self.network(CLIPVisionModelWithProjection, "image_encoder")}

    def unet_tensors(self) -> Mapping[str, Tensor]:
        """The UNet's weights by the names of diffusers."""
        return original.translated(self.parts.tensors("unet"), self.config)

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Checks every file, the layer that makes a token included."""
        from transformers import CLIPVisionConfig

        notes = super().verify(strings)
        sees = CLIPVisionConfig.from_dict(self.parts.config("image_encoder")).projection_dim
        self._projection(sees)
        return notes

    def embed(self, strings: Sequence[str]) -> Tensor:
        """Refuses: this model reads no text."""
        raise UserError("Zero-1-to-3 is shown a picture and reads no text; give prompts: {use: FromPicture}")

    @torch.no_grad()
    def see(self, picture: Reference) -> "Shown":
        """What the model makes of the picture, before white, and of any pose; the image encoder is freed."""
        rgba = picture.resized(self.resolution).rgba.permute(2, 0, 1)[None].to(self.device)
        rgb = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
        mode = self.vae.encode(to_model(rgb, self.resolution).to(self.dtype)).latent_dist.mode()[0].float()
        embedding = self._embedding(rgb)
        weight, bias = (value.to(self.device, torch.float32) for value in self._projection(len(embedding)))
        token = torch.cat([(weight[:, :-4] @ embedding + bias)[None], weight[:, -4:].T])
        camera = torch.tensor([picture.azimuth, picture.elevation, picture.distance])
        return Shown(token.cpu(), mode.cpu(), camera, self.stable)

    def _embedding(self, rgb: Tensor) -> Tensor:
        """The image encoder's embedding [E] of the picture rgb [1, 3, S, S]."""
        eye = self.place("image_encoder")
        side, looks = eye.config.image_size, {}
        if self.parts.has("feature_extractor"):
            looks = self.parts.config("feature_extractor")
        if len(rgb[0, 0]) != side:
            rgb = F.interpolate(rgb, (side, side), mode="bicubic", align_corners=True)
        mean, std = (torch.tensor(looks.get(name, default), device=rgb.device).view(3, 1, 1)
                     for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
        return eye(pixel_values=((rgb - mean) / std).to(self.dtype)).image_embeds[0].float()

    def _projection(self, E: int) -> tuple[Tensor, Tensor]:
        """Weight [C, E + 4] and bias [C] of the layer that makes a token of the picture's embedding and a pose."""
        if isinstance(self.parts, Original):
            found, layer = self.parts.file, "cc_projection"
        else:
            folder = next((name for name in PROJECTIONS if self.parts.has(name)), None)
            if folder is None:
                raise UserError(f"model {self.parts.model!r}: has no part {' or '.join(PROJECTIONS)}; give a Zero-1-to-3")
            found, layer = self.parts.tensors(folder), PROJECTIONS[folder]
        try:
            weight, bias = found[f"{layer}.weight"], found[f"{layer}.bias"]
        except KeyError as error:
            raise UserError(f"model {self.parts.model!r}: has no {error} for the pose; give a Zero-1-to-3") from error
        if weight.shape != (wanted := (self.config["cross_attention_dim"], E + 4)) or bias.shape != wanted[:1]:
            raise UserError(f"model {self.parts.model!r}: its camera projection is {list(weight.shape)}, its other parts need "
                            f"{list(wanted)}; give the parts of one Zero-1-to-3")
        return weight, bias


class FromPicture:
    """For Zero-1-to-3: the picture that the run starts from, and the pose of each view relative to its."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def check(self, prior: Prior) -> None:
        """Raises UserError for a prior that looks at no picture."""
        if not isinstance(prior, Zero123):
            raise UserError("shows a picture, which this prior does not look at; use Zero123")

    def encode(self, prior: Prior, prompt: str) -> Conditions:
        """What the prior makes of the picture; the prompt is not read."""
        self.check(prior)
        return prior.see(self.reference)


@dataclass(frozen=True)
class Shown:
    """A picture as Zero-1-to-3 is told of it. The layer that makes a token is linear, so what it makes of the picture is
    one vector, and of the pose a matrix."""

    token: Tensor  # [1 + 4, C]: the picture's part, and what each number of the pose adds
    latents: Tensor  # [4, h, w]: the mode of the VAE's posterior, not scaled
    camera: Tensor  # [3]: azimuth (rad), elevation (rad) and distance of the picture's
    stable: bool

    def to(self, device: torch.device | str) -> "Shown":
        """The same on a device."""
        return Shown(self.token.to(device), self.latents.to(device), self.camera, self.stable)

    def __call__(self, views: Views) -> Condition:
        """The token and the picture for each view, and, unconditionally, zeros for both."""
        B, device = len(views), self.token.device
        relative = pose(views.azimuth, views.elevation, views.distance, *self.camera)
        if self.stable:
            relative[:, 3] = pi / 2 - self.camera[1]
        token = self.token[0] + relative.to(device) @ self.token[1:]
        text = torch.stack([token, torch.zeros_like(token)])[:, :, None]
        image = self.latents.expand(B, *self.latents.shape)
        return Condition(text, token.new_zeros(0, B), torch.stack([image, torch.zeros_like(image)]))
