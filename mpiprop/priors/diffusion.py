"""Diffusion models of the diffusers family as priors: Stable Diffusion (latent) and DeepFloyd IF (pixel).

B images, V strings, N tokens of width E, x0 and x_t [B, C, h, w]. DreamFusion, section 2;
v-prediction: Salimans and Ho 2022, appendix D.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpiprop.core.errors import UserError
from mpiprop.core.steps import Streams, normal
from mpiprop.priors.base import alpha_bar
from mpiprop.priors.original import Original
from mpiprop.priors.parts import Parts
from mpiprop.priors.prompts import encode
from mpiprop.priors.vocabulary import Vocabulary

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class Diffusion:
    """A UNet, its noise schedule, and how to read both."""

    group = 1

    def __init__(self, device: torch.device | str, parts: Parts | Original, dtype: str) -> None:
        self.device, self.parts = torch.device(device), parts
        self.vocabulary = Vocabulary.builtin() if parts.model == "builtin" else None
        auto = "float16" if self.device.type == "cuda" else "float32"
        self.dtype: torch.dtype = getattr(torch, auto if dtype == "auto" else dtype)
        self.config = self.configured()
        if self.config.get("addition_embed_type") not in (None, "text"):
            raise UserError(f"model {parts.model!r}: its UNet wants more than text (addition_embed_type "
                            f"{self.config['addition_embed_type']!r}); give a Stable Diffusion 1 or 2, or DeepFloyd IF")
        scheduler = parts.config("scheduler")
        self.alpha_bar = alpha_bar(scheduler)
        self.prediction: str = scheduler.get("prediction_type", "epsilon")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"model {parts.model!r}: prediction_type {self.prediction!r} is not supported; "
                            "give a model that predicts epsilon or v_prediction")

    def configured(self) -> dict[str, Any]:
        """The UNet's configuration."""
        return self.parts.config("unet")

    @cached_property
    def unet(self) -> nn.Module:
        from diffusers import UNet2DConditionModel

        return self.place(UNet2DConditionModel, "unet")

    @torch.no_grad()
    def eps(self, x_t: Tensor, t: Tensor, text: Tensor, image: Tensor | None = None, camera: Tensor | None = None) -> Tensor:
        """The predicted noise [B, C, h, w] float32; a v-prediction is converted: eps = alpha v + sigma x_t."""
        x = x_t if image is None else torch.cat([x_t, image], 1)
        told = {} if camera is None else {"class_labels": camera.to(self.dtype)}
        out = self.unet(x.to(self.dtype), t, encoder_hidden_states=text.to(self.dtype), **told).sample
        out = out[:, : x_t.shape[1]].float()  # DeepFloyd appends a variance
        if self.prediction == "epsilon":
            return out
        bar = self.alpha_bar.to(t.device)[t].float().view(-1, 1, 1, 1)
        return bar.sqrt() * out + (1 - bar).sqrt() * x_t

    def networks(self) -> dict[str, tuple[type, dict[str, Any]]]:
        """The networks that stay on the device: class and configuration by part."""
        from diffusers import UNet2DConditionModel

        return {"unet": (UNet2DConditionModel, self.config)}

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Builds the networks without weights."""
        self.weight_bytes()
        return []

    def weight_bytes(self) -> int:
        """Bytes of the UNet, and of the VAE where there is one, in the prior's dtype."""
        total = 0
        for cls, config in self.networks().values():
            with torch.device("meta"):
                total += sum(p.numel() for p in cls.from_config(dict(config)).parameters()) * self.dtype.itemsize
        return total

    def place(self, cls: type, part: str) -> Any:
        """A part of the model on its device."""
        return self.put(self.parts.load(part, cls, self.dtype))

    def put(self, module: nn.Module) -> Any:
        """The module on the device, laid out as is fastest there."""
        module = module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.device.type == "cuda" else module


class Latent(Diffusion):
    """A UNet that denoises the latents of a VAE, beside `extra` other channels."""

    def __init__(self, device: torch.device | str, parts: Parts | Original, dtype: str, resolution: int | None = None,
                 extra: int = 0) -> None:
        super().__init__(device, parts, dtype)
        vae, wanted = parts.config("vae"), self.config["in_channels"]
        self._vae = vae["_class_name"]
        if self._vae not in ("AutoencoderKL", "AutoencoderTiny"):
            raise UserError(f"model {parts.model!r}: its VAE is a {self._vae}; give a model with an AutoencoderKL")
        if vae["latent_channels"] + extra != wanted:
            kind = "one that is shown a picture" if extra else "a text-to-image model"
            raise UserError(f"model {parts.model!r}: its UNet wants {wanted} channels, its VAE makes "
                            f"{vae['latent_channels']}; give {kind}")
        channels = vae.get("block_out_channels") or vae["encoder_block_out_channels"]
        self.resolution = resolution or self.config["sample_size"] * 2 ** (len(channels) - 1)
        self.scale, self.shift = vae["scaling_factor"], vae.get("shift_factor") or 0.0

    def networks(self) -> dict[str, tuple[type, dict[str, Any]]]:
        import diffusers

        return super().networks() | {"vae": (getattr(diffusers, self._vae), self.parts.config("vae"))}

    @cached_property
    def vae(self) -> nn.Module:
        import diffusers

        return self.place(getattr(diffusers, self._vae), "vae")

    def encode(self, rgb: Tensor, rng: Streams) -> Tensor:
        """A sample of the VAE's posterior, scaled to unit deviation: [B, C, h, w], differentiable in rgb."""
        made = self.vae.encode(to_model(rgb, self.resolution).to(self.dtype))
        if self._vae == "AutoencoderTiny":
            x0 = made.latents
        else:
            q = made.latent_dist
            x0 = q.mean + q.std * rng.rows("posterior", normal, *q.mean.shape).to(q.mean)
        return (x0.to(rgb.dtype) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """The image [B, 3, H, W] in [0, 1] that the VAE reads in x0."""
        return _from_model(self.vae.decode((x0 / self.scale + self.shift).to(self.dtype)).sample)


class StableDiffusion(Latent):
    """Stable Diffusion 1 and 2 and whatever is built like them: CLIP text, latents of a VAE.

    model: "builtin", a folder in the diffusers layout, or a hub id (owner/name)
    variant: of the weight files, such as fp16
    revision: of the hub repository
    dtype: of the networks; auto: float16 on CUDA, float32 otherwise
    resolution: to which renders are resized (pixels); default: what the model was trained at
    """

    def __init__(self, device: torch.device | str, *, model: str = "builtin", variant: str | None = None,
                 revision: str | None = None, dtype: Dtype = "auto", resolution: int | None = None) -> None:
        super().__init__(device, Parts(model, variant, revision), dtype, resolution)

    def embed(self, strings: Sequence[str]) -> Tensor:
        """The last hidden states [V, N, E] of the CLIP text encoder."""
        return clip_text(self, strings)


class DeepFloyd(Diffusion):
    """DeepFloyd IF, first stage: T5 text, no latents; renders are resized to 64 x 64 pixels.

    model: a folder in the diffusers layout or a hub id (owner/name); the hub asks to accept the licence first
    variant: of the weight files, such as fp16
    revision: of the hub repository
    dtype: of the networks; auto: float16 on CUDA, float32 otherwise
    """

    TOKENS = 77  # what IF was trained with, whatever T5 could read

    def __init__(self, device: torch.device | str, *, model: str = "DeepFloyd/IF-I-XL-v1.0", variant: str | None = None,
                 revision: str | None = None, dtype: Dtype = "auto") -> None:
        super().__init__(device, Parts(model, variant, revision), dtype)

    def embed(self, strings: Sequence[str]) -> Tensor:
        """The last hidden states [V, 77, E] of T5, in which padding was masked."""
        from transformers import T5EncoderModel, T5Tokenizer

        tokenizer = self.parts.load("tokenizer", T5Tokenizer)
        encoder = self.place(T5EncoderModel, "text_encoder")
        return encode(tokenizer, encoder, [s.lower().strip() for s in strings], self.TOKENS, masked=True)

    def encode(self, rgb: Tensor, rng: Streams) -> Tensor:
        """The pixels in [-1, 1], [B, 3, h, w] at the model's resolution; nothing is drawn."""
        return to_model(rgb, self.config["sample_size"])

    def decode(self, x0: Tensor) -> Tensor:
        """The pixels of x0 in [0, 1]."""
        return _from_model(x0)


def clip_text(prior: Diffusion, strings: Sequence[str]) -> Tensor:
    """The last hidden states [V, N, E] of a prior's CLIP text encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = prior.parts.load("tokenizer", CLIPTokenizer)
    encoder = prior.place(CLIPTextModel, "text_encoder")
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return encode(tokenizer, encoder, strings, length)


def to_model(rgb: Tensor, size: int) -> Tensor:
    """Images [B, 3, size, size] in [-1, 1] of rgb [B, 3, H, W] in [0, 1]."""
    return F.interpolate(rgb, (size, size), mode="bilinear", align_corners=False) * 2 - 1


def _from_model(x: Tensor) -> Tensor:
    return (x.float() / 2 + 0.5).clamp(0, 1)
