"""Diffusion models of the diffusers family as priors: Stable Diffusion (latent) and DeepFloyd IF (pixel).

Letters: B images, V strings, N tokens of width E, x0 and x_t [B, C, h, w]. DreamFusion, section 2;
v-prediction: Salimans and Ho 2022, appendix D.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.priors.base import Embeddings, Latents, Pictures, Timesteps, alpha_bar, alpha_sigma
from mpiprop.priors.networks import Network
from mpiprop.priors.ldm import Original
from mpiprop.priors.parts import KINDS, Parts
from mpiprop.priors.tokens import encode, ends, lost
from mpiprop.priors.vocabulary import Vocabulary

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
KEPT = ("unet", "vae")  # of a model's networks, those that stay on the device
CHANNELS = {"AutoencoderKL": "block_out_channels", "AutoencoderTiny": "encoder_block_out_channels"}  # by class: one a level


class Diffusion:
    """A UNet with its noise schedule, read from a model's files."""

    group = 1
    reads = frozenset({"text"})

    def __init__(self, device: torch.device | str, parts: Parts | Original, dtype: str) -> None:
        from diffusers import DDPMScheduler

        self.device, self.parts = torch.device(device), parts
        self.vocabulary = Vocabulary.builtin() if parts.model == "builtin" else None
        auto = "float16" if self.device.type == "cuda" else "float32"
        self.dtype: torch.dtype = getattr(torch, auto if dtype == "auto" else dtype)
        self.config = self.configured()
        if (wants := self.config["addition_embed_type"]) not in (None, "text"):
            kind = "Stable Diffusion XL or built like it" if wants == "text_time" else "of another kind"
            raise UserError(f"model {parts.model!r}: is {kind} (its UNet wants more than text: addition_embed_type {wants!r}), "
                            f"which is not supported; {KINDS}")
        scheduler = parts.config("scheduler", DDPMScheduler)
        if "FlowMatch" in scheduler.get("_class_name", ""):
            raise UserError(f"model {parts.model!r}: is a flow model ({scheduler['_class_name']}), which is not supported; "
                            f"{KINDS}")
        self.alpha_bar = alpha_bar(scheduler)
        self.prediction: str = scheduler["prediction_type"]
        if self.prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"model {parts.model!r}: prediction_type {self.prediction!r} is not supported; "
                            "give a model that predicts epsilon or v_prediction")

    def configured(self) -> dict[str, Any]:
        """Returns the UNet's configuration, defaults included."""
        from diffusers import UNet2DConditionModel

        return self.parts.config("unet", UNet2DConditionModel)

    def networks(self) -> dict[str, Network]:
        """Returns the networks in use, by part."""
        from diffusers import UNet2DConditionModel

        where = f"model {self.parts.model!r}, unet"
        return {"unet": Network(UNet2DConditionModel, lambda: self.config, self.unet_tensors, where)}

    def unet_tensors(self) -> Mapping[str, Tensor]:
        """Returns the UNet's weights under diffusers' names."""
        return self.parts.tensors("unet")

    def network(self, cls: type, part: str) -> Network:
        """Returns a network other than the UNet."""
        return Network(cls, partial(self.parts.config, part), partial(self.parts.tensors, part),
                       f"model {self.parts.model!r}, {part}")

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Checks that every file is present and complete, and that weights fit their configuration."""
        networks = self.networks()
        notes = [note for part in networks if (note := self.parts.weights(part)[1])]
        for network in networks.values():
            network.verify()
        return notes + self.lost(strings)

    def lost(self, strings: Sequence[str]) -> list[str]:
        """Returns notes on what the encoder does not read of these texts, a line each."""
        return []

    def weight_bytes(self) -> int:
        """Returns the bytes of the UNet, and of the VAE if there is one, in the prior's dtype."""
        return sum(network.bytes(self.dtype) for part, network in self.networks().items() if part in KEPT)

    @cached_property
    def unet(self) -> nn.Module:
        return self.place("unet")

    @torch.no_grad()
    def eps(self, x_t: Latents, t: Timesteps, text: Embeddings,
            image: Float[Tensor, "B Ci h w"] | None = None, camera: Float[Tensor, "B 16"] | None = None) -> Latents:
        """Returns the predicted noise, float32."""
        x = x_t if image is None else torch.cat([x_t, image], 1)
        labels = {} if camera is None else {"class_labels": camera.to(self.dtype)}
        out = self.unet(x.to(self.dtype), t, encoder_hidden_states=text.to(self.dtype), **labels).sample
        return self.noise_of(out[:, : x_t.shape[1]].float(), x_t, t)  # DeepFloyd appends a variance

    def pictures(self, x: Latents) -> Pictures:
        """Returns the images of x, not clamped to [0, 1]; differentiable."""
        return x.float() / 2 + 0.5

    @torch.no_grad()
    def decode(self, x0: Latents) -> Pictures:
        """Returns the images in [0, 1] of x0."""
        return self.pictures(x0).clamp(0, 1)

    def noise_of(self, out: Latents, x_t: Latents, t: Timesteps) -> Latents:
        """Converts a network's output, noise or v, to noise: eps = alpha v + sigma x_t."""
        if self.prediction == "epsilon":
            return out
        alpha, sigma = alpha_sigma(self, t)
        return alpha * out + sigma * x_t

    def place(self, part: str) -> Any:
        """Loads a network onto the device, in the memory layout that is fastest there."""
        module = self.networks()[part].load(self.dtype).to(self.device)
        return module.to(memory_format=torch.channels_last) if self.device.type == "cuda" else module


class Latent(Diffusion):
    """A UNet that denoises the latents of a VAE; `extra` counts its other input channels."""

    def __init__(self, device: torch.device | str, parts: Parts | Original, dtype: str, resolution: int | None = None,
                 extra: int = 0) -> None:
        import diffusers

        super().__init__(device, parts, dtype)
        self._vae = parts.config("vae").get("_class_name", "AutoencoderKL").removeprefix("Flax")
        if self._vae not in CHANNELS:
            raise UserError(f"model {parts.model!r}: its VAE is a {self._vae}; give a model with an AutoencoderKL")
        vae = parts.config("vae", getattr(diffusers, self._vae))
        if vae["latent_channels"] + extra != (wanted := self.config["in_channels"]):
            kind = "one that is shown a picture" if extra else "a text-to-image model"
            raise UserError(f"model {parts.model!r}: its UNet wants {wanted} channels, its VAE makes "
                            f"{vae['latent_channels']}; give {kind}")
        if not (side := self.config["sample_size"]) and resolution is None:
            raise UserError(f"model {parts.model!r}: does not say at what size it was trained; give resolution (pixels)")
        self.widths: Sequence[int] = vae[CHANNELS[self._vae]]  # channels of the VAE's encoder, by level, ...
        self.layers: int = vae.get("layers_per_block", 2)  # ... and its blocks in each
        factor = 2 ** (len(self.widths) - 1)
        if resolution is not None and (resolution < factor or resolution % factor):
            raise UserError(f"resolution {resolution}: needs a multiple of {factor}, which the VAE makes one latent of")
        self.resolution = resolution or side * factor
        self.scale, self.shift = vae["scaling_factor"], vae["shift_factor"] or 0.0

    def networks(self) -> dict[str, Network]:
        import diffusers

        return super().networks() | {"vae": self.network(getattr(diffusers, self._vae), "vae")}

    @cached_property
    def vae(self) -> nn.Module:
        return self.place("vae")

    def encode(self, rgb: Pictures, rng: Streams) -> Latents:
        """Returns a sample [B, C, h, w] of the VAE's posterior, scaled to unit deviation; differentiable in rgb."""
        made = self.vae.encode(to_model(rgb, self.resolution).to(self.dtype))
        if self._vae == "AutoencoderTiny":
            x0 = made.latents
        else:
            q = made.latent_dist
            x0 = q.mean + q.std * rng.rows("posterior", normal, *q.mean.shape).to(q.mean)
        return (x0.to(rgb.dtype) - self.shift) * self.scale

    def pictures(self, x: Latents) -> Pictures:
        """Returns the images [B, 3, H, W] that the VAE decodes from x, not clamped; differentiable."""
        return super().pictures(self.vae.decode((x / self.scale + self.shift).to(self.dtype)).sample)


class TextLatent(Latent):
    """A latent model conditioned on the last hidden states of CLIP's text encoder."""

    def networks(self) -> dict[str, Network]:
        from transformers import CLIPTextModel

        return super().networks() | {"text_encoder": self.network(CLIPTextModel, "text_encoder")}

    def lost(self, strings: Sequence[str]) -> list[str]:
        """Returns notes on what the encoder cuts off or does not know, a line each."""
        return lost(*self._tokens, strings, words_too=self.vocabulary is None)

    def embed(self, strings: Sequence[str]) -> Float[Tensor, "V N E"]:
        """Returns the last hidden states [V, N, E] of the CLIP text encoder."""
        tokenizer, length = self._tokens
        return encode(tokenizer, self.place("text_encoder"), strings, length)

    def ends(self, strings: Sequence[str]) -> list[int]:
        """Returns the place of the end token in each text."""
        tokenizer, length = self._tokens
        return ends(tokenizer, strings, length)

    @cached_property
    def _tokens(self) -> tuple[Any, int]:
        """The tokenizer, and the number of tokens that the encoder reads."""
        from transformers import CLIPTextConfig, CLIPTokenizer

        tokenizer = self.parts.tokenizer(CLIPTokenizer)
        reads = CLIPTextConfig.from_dict(self.parts.config("text_encoder")).max_position_embeddings
        return tokenizer, min(tokenizer.model_max_length, reads)


class StableDiffusion(TextLatent):
    """Stable Diffusion 1 and 2 and models of the same architecture: CLIP text, latents of a VAE.

    model: "builtin", a folder in the diffusers layout, or a hub id (owner/name)
    variant: of the weight files, such as fp16
    revision: of the hub repository
    dtype: of the networks; auto: float16 on CUDA, float32 otherwise
    resolution: to which renders are resized (pixels); default: what the model was trained at
    """

    def __init__(self, device: torch.device | str, *, model: str = "builtin", variant: str | None = None,
                 revision: str | None = None, dtype: Dtype = "auto", resolution: int | None = None) -> None:
        super().__init__(device, Parts(model, variant, revision), dtype, resolution)


class DeepFloyd(Diffusion):
    """DeepFloyd IF, first stage: T5 text, no latents; renders are resized to 64 x 64 pixels.

    model: a folder in the diffusers layout or a hub id (owner/name); the hub asks to accept the licence first
    variant: of the weight files, such as fp16
    revision: of the hub repository
    dtype: of the networks; auto: float16 on CUDA, float32 otherwise
    """

    TOKENS = 77  # as IF was trained; T5 itself has no limit

    def __init__(self, device: torch.device | str, *, model: str = "DeepFloyd/IF-I-XL-v1.0", variant: str | None = None,
                 revision: str | None = None, dtype: Dtype = "auto") -> None:
        super().__init__(device, Parts(model, variant, revision), dtype)

    def networks(self) -> dict[str, Network]:
        from transformers import T5EncoderModel

        return super().networks() | {"text_encoder": self.network(T5EncoderModel, "text_encoder")}

    def lost(self, strings: Sequence[str]) -> list[str]:
        """Returns notes on what the encoder cuts off or does not know, a line each."""
        return lost(self._tokenizer, self.TOKENS, _plain(strings))

    def embed(self, strings: Sequence[str]) -> Float[Tensor, "V N E"]:
        """Returns the last hidden states, N = 77, of T5, padding masked."""
        return encode(self._tokenizer, self.place("text_encoder"), _plain(strings), self.TOKENS, masked=True)

    def ends(self, strings: Sequence[str]) -> list[int]:
        """Returns the place of the end token in each text."""
        return ends(self._tokenizer, _plain(strings), self.TOKENS)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import T5Tokenizer

        return self.parts.tokenizer(T5Tokenizer)

    def encode(self, rgb: Pictures, rng: Streams) -> Latents:
        """Returns the pixels in [-1, 1] at the model's resolution; no random draws."""
        return to_model(rgb, self.config["sample_size"])


def to_model(rgb: Pictures, size: int) -> Float[Tensor, "B 3 {size} {size}"]:
    """Resizes images in [0, 1] and maps them to [-1, 1]."""
    return F.interpolate(rgb, (size, size), mode="bilinear", align_corners=False) * 2 - 1


def _plain(strings: Sequence[str]) -> list[str]:
    """Returns the texts in the form that IF was trained with."""
    return [string.lower().strip() for string in strings]
