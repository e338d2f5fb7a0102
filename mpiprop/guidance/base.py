"""What every score distillation shares: timesteps, weights, classifier-free guidance and the surrogate loss.

B images, T timesteps, K Perp-Neg negatives, x and noise predictions [B, C, h, w].
"""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from mpiprop.core.streams import Streams
from mpiprop.views.cameras import Image, Views

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sds": lambda alpha_bar: 1 - alpha_bar,  # DreamFusion, section 3
    "uniform": torch.ones_like,  # Magic3D
    "fantasia3d": lambda alpha_bar: alpha_bar.sqrt() * (1 - alpha_bar),
}


class Guidance(Protocol):
    """What is wanted of a render."""

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Tensor, dict[str, float]]:
        """A scalar whose gradient in the image is the paper's, and numbers for the log; pure in its arguments."""

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where its settings at step tau, or the views drawn there, do not make sense."""


def timesteps(rng: Generator, B: int, lo: int, hi: int, per_sample: bool = True, group: int = 1) -> Tensor:
    """Timesteps [B], uniform over the closed interval [lo, hi], one for each `group` of views; one for all unless
    per_sample."""
    each = group if per_sample else B
    return torch.randint(lo, hi + 1, (-(-B // each),), generator=rng).repeat_interleave(each)[:B]


def annealed(tau: int, steps: int, lo: float, hi: float) -> float:
    """The point between hi (tau = 0) and lo (tau >= steps) of HiFA's square-root schedule (Zhu and Zhuang 2023)."""
    return hi - (hi - lo) * min(1.0, tau / steps) ** 0.5


def guided(uncond: Tensor, cond: Tensor, scale: float, form: Literal["A", "B"], rescale: float = 0.0) -> Tensor:
    """The noise prediction under classifier-free guidance (Ho and Salimans 2022, Eq. (6)).

    Form A: cond + scale (cond - uncond); form B: uncond + scale (cond - uncond). `rescale` mixes in a prediction with
    the standard deviation of cond (Lin et al. 2023, Eqs. (15) and (16)).
    """
    eps = uncond + (scale + (form == "A")) * (cond - uncond)
    if not rescale:
        return eps
    dims = tuple(range(1, eps.ndim))
    ratio = cond.std(dims, keepdim=True) / eps.std(dims, keepdim=True)
    return eps * (1 + rescale * (ratio - 1))


def perp_neg(uncond: Tensor, cond: Tensor, negatives: Tensor, weights: Tensor) -> Tensor:
    """The conditional prediction moved along what is perpendicular to it in the negatives (Armandpour et al. 2023).

    negatives [K, B, C, h, w], weights [K, B]; projections are per sample.
    """
    e = (cond - uncond).flatten(1)  # [B, Chw]
    n = (negatives - uncond).flatten(2)  # [K, B, Chw]
    along = (n * e).sum(-1) / e.square().sum(-1).clamp_min(1e-6)  # [K, B]
    perp = n - along[..., None] * e
    return cond + (weights[..., None] * perp).sum(0).view_as(cond)


def clipped(g: Tensor, bound: float) -> Tensor:
    """g held in [-bound, bound]; what is not finite becomes NaN, to be refused, rather than the bound."""
    return g.clamp(-bound, bound) + 0 * g


def surrogate(x: Tensor, g: Tensor) -> Tensor:
    """The scalar |g|^2 / 2B whose gradient in x is exactly g / B; nothing else is differentiated."""
    g = g.detach()
    return ((x - x.detach()) * g + g.square() / 2).sum() / len(x)
