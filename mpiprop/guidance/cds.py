"""Consistency distillation sampling (Consistent3D, Wu et al., CVPR 2024): neighbours on a trajectory agree.

    residual = eps_guided(x_t) - eps_guided(x_s),  x_t = alpha_t x + sigma_t eps,  x_s one DDIM step from x_t, s < t

A consistency model predicts the same picture from every point of a trajectory. CDS optimises the scene as if it were
one: predictions at two neighbouring points should agree. The noise eps is the same in all views and steps, so that
there is one trajectory. s falls over the steps by a square root, and t is drawn above it. The authors' rescaling (0 by
default) is not offered.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule
from mpiprop.core.streams import Streams, normal
from mpiprop.guidance import ddim
from mpiprop.guidance.distillation import Guided, Sample
from mpiprop.guidance.queries import Asking
from mpiprop.guidance.timesteps import Weighting, uniform_timesteps
from mpiprop.priors.base import Prior


class CDS(Guided):
    """The gradient w(t) (eps_guided(x_t) - eps_guided(x_s)) of each view, s below t on one trajectory.

    t_min: smallest s (fraction of all timesteps)
    t_max: largest s (fraction of all timesteps)
    anneal: over so many steps s goes from t_max to t_min by a square root; 0: s is t_min
    gap: smallest and largest t - s, between which it is drawn (fractions of all timesteps)
    t_top: largest t (fraction of all timesteps)
    """

    name = "cds"

    def __init__(self, prior: Prior, prompts: Conditions, *, weighting: Weighting = "uniform", scale: Schedule = 51.0,
                 t_min: Schedule = 0.1, t_max: Schedule = 0.7, anneal: int = 3000,
                 gap: tuple[float, float] = (0.1, 0.299), t_top: float = 0.98, **keys: Any) -> None:
        super().__init__(prior, prompts, weighting=weighting, scale=scale, t_min=t_min, t_max=t_max, anneal=anneal,
                         **keys)
        if not 0 <= gap[0] <= gap[1] <= 1:
            raise UserError(f"gap {list(gap)}: needs two numbers in [0, 1], the smaller first")
        self.gap, self.t_top = gap, t_top

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided(x_t) - eps_guided(x_s)."""
        t, s = sample.t, torch.full_like(sample.t, self.band(sample.tau)[0]).minimum(sample.t)
        noise = normal(replace(sample.rng, tau=0)("noise.shared"), 1, *sample.x.shape[1:]).to(sample.x.device)
        x_t = sample.noised(t, noise)
        far = yield from self.guided(sample, x_t, t)
        near = yield from self.guided(sample, ddim.step(self.prior, x_t, far, t, s), s)
        return far - near

    def timesteps(self, B: int, tau: int, rng: Streams) -> Int[Tensor, " {B}"]:
        """Returns the timesteps t of the step, on the CPU."""
        T, s = len(self.prior.alpha_bar), self.band(tau)[0]
        lo, hi = (round(T * part) for part in self.gap)
        draw = partial(uniform_timesteps, lo=lo, hi=hi, per_sample=self.per_sample_t, group=self.prior.group)
        return (s + rng.rows("t", draw, B)).clamp(max=min(round(T * self.t_top), T - 1))
