"""At which noise levels a guidance looks, and how much each counts."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Int
from torch import Generator, Tensor

Weighting = Literal["sds", "uniform", "fantasia3d", "snr"]
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sds": lambda alpha_bar: 1 - alpha_bar,  # DreamFusion, section 3
    "uniform": torch.ones_like,  # Magic3D
    "fantasia3d": lambda alpha_bar: alpha_bar.sqrt() * (1 - alpha_bar),
    "snr": lambda alpha_bar: (1 / alpha_bar - 1).sqrt(),  # sigma / alpha: LucidDreamer, SDI
}


def uniform_timesteps(rng: Generator, B: int, lo: int, hi: int, per_sample: bool = True, group: int = 1
                      ) -> Int[Tensor, " {B}"]:
    """Returns timesteps, uniform over the closed interval [lo, hi], one for each `group` of views; one for all unless
    per_sample."""
    each = group if per_sample else B
    return torch.randint(lo, hi + 1, (-(-B // each),), generator=rng).repeat_interleave(each)[:B]


def annealed(tau: int, steps: int, lo: float, hi: float) -> float:
    """Returns the point between hi (tau = 0) and lo (tau >= steps) of HiFA's square-root schedule (Zhu and Zhuang 2023)."""
    return hi - (hi - lo) * min(1.0, tau / steps) ** 0.5
