"""Deterministic steps along the trajectory of a diffusion model, in either direction (DDIM, Song et al. 2021, Eq. (12)).

Letters: B views, x_t and noise predictions [B, C, h, w].
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpiprop.guidance.distillation import Sample
from mpiprop.guidance.queries import Asking
from mpiprop.priors.base import Latents, Prior, Timesteps, alpha_bar_at, alpha_sigma


def step(prior: Prior, x_t: Latents, eps: Latents, t: Timesteps, s: Timesteps) -> Latents:
    """Returns x_s on the trajectory through x_t, given the noise `eps` predicted there, for timesteps t and s.

    Rows whose s is t keep their bits.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(prior, t), alpha_sigma(prior, s)
    x_s = alpha_s / alpha_t * (x_t - sigma_t * eps) + sigma_s * eps
    return torch.where((s == t).view(-1, 1, 1, 1), x_t, x_s)


def ladder(t: Timesteps, stride: int) -> list[Timesteps]:
    """Returns the timesteps 0, stride, 2 stride, ... of a way up to t; a row that has arrived stays."""
    rungs = -(-int(t.max()) // stride)
    return [torch.full_like(t, k * stride).minimum(t) for k in range(rungs + 1)]


def inverted(sample: Sample, x: Tensor, times: Sequence[Tensor],
             eps: Callable[[Tensor, Tensor], Asking[Tensor]], eta: float = 0.0) -> Asking[Tensor]:
    """A coroutine that carries x from the first to the last of `times` [B] and returns it: DDIM inversion.

    `eps(x_t, t)` asks for the noise predicted in x_t. With `eta`, noise of so many of DDIM's standard deviations is
    added after each step.
    """
    for k, (t, s) in enumerate(zip(times, times[1:])):
        x = step(sample.prior, x, (yield from eps(x, t)), t, s)
        if eta:
            bar_t, bar_s = alpha_bar_at(sample.prior, t), alpha_bar_at(sample.prior, s)
            variance = (1 - bar_t) / (1 - bar_s) * (1 - bar_s / bar_t)
            x = x + eta * variance.sqrt() * sample.noise(f"inversion.{k}")
    return x
