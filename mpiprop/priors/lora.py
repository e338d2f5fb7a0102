"""A low-rank adapter of a prior's network, conditioned on the camera: it learns the score of the renders themselves
(ProlificDreamer, section 3.2; LoRA: Hu et al. 2022).

Letters: B images, x0, x_t and noise [B, C, h, w], text [B, N, E], n adapters. The adapters are trained with the scene, as a
learning-rate group of n lanes. The network belongs to the guidance's prior, or to another; its adapter is switched on for
the duration of a call.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.priors.base import Embeddings, Latents, Prior, Timesteps, alpha_sigma
from mpiprop.priors.diffusion import Diffusion

CAMERA = 16  # numbers of a camera: its c2w matrix
Shapes = dict[str, tuple[int, ...]]


class Lora(nn.Module):
    """Low-rank additions to the attention of a diffusion prior, and a camera embedding; at first they add nothing.

    The prior is that of the guidance, unless `prior` names another for its network and noise schedule; that one reads the
    same latents and texts (ProlificDreamer: Stable Diffusion 2.1 at 768 pixels, which predicts v, beside 2.1-base).

    rank: of the additions
    loras: 1: one adapter, trained in every step; n: step tau uses and trains adapter tau mod n alone, as if each of n
        workers kept its own
    average_every: steps between replacing several adapters by their mean; 0: never
    """

    def __init__(self, prior: Prior, rng: Streams, *, rank: int = 4, loras: int = 1, average_every: int = 0) -> None:
        super().__init__()
        if not isinstance(prior, Diffusion) or "text" not in prior.reads:
            raise UserError("needs a prior of text with a network to adapt; use StableDiffusion")
        if rank < 1 or loras < 1 or average_every < 0:
            raise UserError(f"rank {rank}, loras {loras}, average_every {average_every}: need at least 1, 1 and 0")
        self.prior, self.rank, self.average_every = prior, rank, average_every
        self.adapter, self.camera = _shapes(prior.config, rank)
        first = {part: torch.cat([_initial(name, shape, rng.of("lora")).reshape(-1) for name, shape in shapes.items()])
                 for part, shapes in (("adapter", self.adapter), ("camera", self.camera))}
        self.lanes = nn.ModuleList(nn.ParameterDict({part: nn.Parameter(numbers.clone()) for part, numbers in first.items()})
                                   for _ in range(loras))

    def check(self, prior: Prior) -> None:
        """Raises UserError where the network adapted here does not read what `prior`, the guidance's, is given."""
        if not isinstance(prior, Diffusion) or "text" not in prior.reads:
            raise UserError("needs a guidance whose prior reads text; use StableDiffusion there")
        for key, about in (("in_channels", "latents of {} channels"), ("cross_attention_dim", "texts of width {}")):
            mine, theirs = (one.config.get(key) for one in (self.prior, prior))
            if mine != theirs:
                raise UserError(f"prior: its network reads {about.format(mine)}, the guidance's prior {about.format(theirs)}; "
                                "give one of the same family")
        if len(self.prior.alpha_bar) != len(prior.alpha_bar):
            raise UserError(f"prior: has {len(self.prior.alpha_bar)} timesteps, the guidance's {len(prior.alpha_bar)}")

    def due(self, tau: int) -> bool:
        """Returns whether the adapters are averaged for step tau."""
        return self.average_every > 0 and tau > 0 and tau % self.average_every == 0

    def network(self, tau: int) -> "Adapted":
        """Returns the network with the adapter of step tau."""
        return Adapted(self, tau)

    def loss(self, x0: Latents, t: Timesteps, noise: Latents, text: Embeddings,
             camera: Float[Tensor, "B 16"], tau: int) -> Float[Tensor, ""]:
        """Returns the mean squared error of the network's output, noise or v, when denoising x0; differentiable in the
        adapter of step tau alone."""
        alpha, sigma = alpha_sigma(self.prior, t)
        x0 = x0.detach()
        target = noise if self.prior.prediction == "epsilon" else alpha * noise - sigma * x0
        return F.mse_loss(self.predict(alpha * x0 + sigma * noise, t, text, camera, tau), target)

    def predict(self, x_t: Latents, t: Timesteps, text: Embeddings, camera: Float[Tensor, "B 16"],
                tau: int) -> Latents:
        """Returns the network's output, noise or v, with the adapter of step tau, under a camera."""
        dtype, scale = self.prior.dtype, x_t.numel()
        lane = self.lanes[tau % len(self.lanes)]
        adapter, embedding = lane["adapter"].view(-1), lane["camera"].view(-1)
        with self._switch.on() as unet:
            out = functional_call(unet, _named(adapter, self.adapter) | _named(embedding, self.camera), (x_t.to(dtype), t),
                                  {"encoder_hidden_states": text.to(dtype), "class_labels": camera}).sample
        out = out[:, : x_t.shape[1]].float()
        if out.requires_grad and dtype == torch.float16:  # the gradient of a mean square is too small for half precision
            out.register_hook(lambda g: g * scale)
            adapter.register_hook(lambda g: g / scale)
            embedding.register_hook(lambda g: g / scale)
        return out

    @cached_property
    def _switch(self) -> "_Switch":
        return _Switch(self.prior.unet, self.rank)


@dataclass(frozen=True)
class Adapted:
    """A network with the adapter of one step, with the `eps` of a prior."""

    lora: Lora
    tau: int

    @torch.no_grad()
    def eps(self, x_t: Latents, t: Timesteps, text: Embeddings, camera: Float[Tensor, "B 16"]) -> Latents:
        """Returns the noise predicted in x_t at timesteps t, under a camera."""
        return self.lora.prior.noise_of(self.lora.predict(x_t, t, text, camera, self.tau), x_t, t)


class _Switch:
    """A network with an adapter that is switched off: the unmodified network for all other callers."""

    def __init__(self, unet: nn.Module, rank: int) -> None:
        from diffusers.models.embeddings import TimestepEmbedding
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        self.unet = inject_adapter_in_model(config, unet, low_cpu_mem_usage=True)  # no weights: each call passes its own
        self.layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
        with torch.device("meta"):
            self.camera = TimestepEmbedding(CAMERA, unet.time_embedding.linear_2.out_features)
        self._turn(False)

    @contextmanager
    def on(self) -> Iterator[nn.Module]:
        """The network with its adapter, until the block ends."""
        self._turn(True)
        try:
            yield self.unet
        finally:
            self._turn(False)

    def _turn(self, on: bool) -> None:
        for layer in self.layers:
            layer.enable_adapters(on)
        self.unet.class_embedding = self.camera if on else None


def _shapes(config: Mapping[str, Any], rank: int) -> tuple[Shapes, Shapes]:
    """The adapter's and the camera embedding's parameters by their names in a UNet of this configuration; no weights."""
    from diffusers import UNet2DConditionModel

    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise UserError("the prior's UNet has class labels, where the camera would go; give a text-to-image model")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    with _Switch(unet, rank).on():
        shapes = {name: tuple(parameter.shape) for name, parameter in unet.named_parameters()}
    return ({name: shape for name, shape in shapes.items() if ".lora_" in name},
            {name: shape for name, shape in shapes.items() if name.startswith("class_embedding.")})


def _initial(name: str, shape: tuple[int, ...], rng: Streams) -> Tensor:
    """Down: N(0, 1/rank^2); the camera's first layer as torch.nn.Linear; up and the camera's last layer zero."""
    if ".lora_A." in name:
        return normal(rng(name), *shape) / shape[0]
    if ".linear_1." in name:
        return uniform(rng(name), *shape, lo=-CAMERA ** -0.5, hi=CAMERA ** -0.5)
    return torch.zeros(shape)


def _named(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    parts = flat.split([prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}
