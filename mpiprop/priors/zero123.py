"""A diffusion model of views conditioned on a picture and a relative pose (Zero-1-to-3, Liu et al. 2023).

Letters: B views; E numbers of the picture's embedding, C of a token, latents [4, h, w]. The network is Stable Diffusion's;
beside the noisy latents it reads the picture's, and instead of a text one token made of the embedding and the pose.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.priors import ldm as original
from mpiprop.priors.diffusion import Dtype, Latent, to_model
from mpiprop.priors.networks import Network
from mpiprop.priors.ldm import Original
from mpiprop.views.reference import Reference

LATENTS = 4  # channels of a picture's latents, beside those of the noisy ones
PROJECTIONS = {"clip_camera_projection": "proj", "cc_projection": "projection"}  # folders with the pose's layer, its name
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Zero123(Latent):
    """Zero-1-to-3, its XL version, Stable Zero123 and models of the same architecture, conditioned on a picture and a pose.

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

    reads = frozenset({"picture"})

    def __init__(self, device: torch.device | str, *, model: str = "builtin",
                 base: str = "lambdalabs/sd-image-variations-diffusers", pose: Literal["zero123", "stable"] = "zero123",
                 variant: str | None = None, revision: str | None = None, dtype: Dtype = "auto",
                 resolution: int | None = None) -> None:
        super().__init__(device, original.parts_of(model, variant, revision, "zero123", base), dtype, resolution, LATENTS)
        self.polar = pose == "stable"

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
    def see(self, picture: Reference) -> tuple[Float[Tensor, "5 C"], Float[Tensor, "4 h w"]]:
        """Encodes the picture, before white, and frees the image encoder.

        Returns the parts of the token (of the picture, and of each number of a pose), and the picture's latents,
        not scaled; both on the CPU.
        """
        rgba = picture.resized(self.resolution).rgba.permute(2, 0, 1)[None].to(self.device)
        rgb = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
        mode = self.vae.encode(to_model(rgb, self.resolution).to(self.dtype)).latent_dist.mode()[0].float()
        embedding = self._embedding(rgb)
        weight, bias = (value.to(self.device, torch.float32) for value in self._projection(len(embedding)))
        token = torch.cat([(weight[:, :-4] @ embedding + bias)[None], weight[:, -4:].T])
        return token.cpu(), mode.cpu()

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
