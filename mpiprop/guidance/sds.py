"""Score distillation sampling (DreamFusion, Eq. (3)): render, add noise, and follow what the prior would take away.

B views, each told R = 2 + K times (prompts.Condition), x0 and x_t [B, C, h, w] in the prior's space.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import Streams, normal
from mpiprop.guidance.base import WEIGHTS, annealed, clipped, guided, perp_neg, surrogate, timesteps
from mpiprop.priors.base import Prior
from mpiprop.priors.prompts import Conditions
from mpiprop.views.cameras import Image, Views


class SDS:
    """The gradient w(t) (eps_guided - eps) of each view in the prior's space, carried to the image by the encoder.

    scale: of classifier-free guidance
    cfg: A: cond + scale (cond - uncond), as DreamFusion; B: uncond + scale (cond - uncond), as Perp-Neg was published
    weighting: w(t): sds: 1 - alpha_bar; uniform: 1; fantasia3d: sqrt(alpha_bar) (1 - alpha_bar)
    t_min: smallest timestep (fraction of all)
    t_max: largest timestep (fraction of all)
    anneal: over so many steps t goes from t_max to t_min by a square root, as in HiFA; 0: t is drawn
    per_sample_t: draw t for each view (those that the prior denoises together share it); otherwise one for the whole batch
    grad_clip: largest absolute value of an entry of the gradient
    rescale: mix of the prediction rescaled to the conditional one's deviation, against saturation; 0: off
    """

    def __init__(self, prior: Prior, prompts: Conditions, *, scale: Schedule = 100.0, cfg: Literal["A", "B"] = "A",
                 weighting: Literal["sds", "uniform", "fantasia3d"] = "sds", t_min: Schedule = 0.02,
                 t_max: Schedule = 0.98, anneal: int = 0, per_sample_t: bool = True,
                 grad_clip: Schedule | None = None, rescale: float = 0.0) -> None:
        self.prior, self.prompts = prior, prompts.to(prior.device)
        self.scale, self.cfg, self.weight, self.rescale = scale, cfg, WEIGHTS[weighting], rescale
        self.t_min, self.t_max, self.anneal, self.per_sample_t = t_min, t_max, anneal, per_sample_t
        self.grad_clip = grad_clip

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Tensor, dict[str, float]]:
        """The scalar |g|^2 / 2B whose gradient in x0 is g / B; numbers: t, sds (the scalar), grad_norm (of g / B)."""
        x0 = self.prior.encode(image.rgb.permute(0, 3, 1, 2), rng)
        t = self.timesteps(len(x0), tau, rng)
        bar = self.prior.alpha_bar[t].float().view(-1, 1, 1, 1).to(x0.device)
        eps = rng.rows("noise", normal, *x0.shape).to(x0.device)
        x_t = bar.sqrt() * x0.detach() + (1 - bar).sqrt() * eps
        g = self.weight(bar) * (self.predict(x_t, t.to(x0.device), views, tau) - eps)
        if self.grad_clip is not None:
            g = clipped(g, at(self.grad_clip, tau))
        scalar = surrogate(x0, g)
        numbers = torch.stack([scalar.detach(), g.norm() / len(g)]).tolist()
        return scalar, {"sds": numbers[0], "grad_norm": numbers[1], "t": float(t.float().mean())}

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where the range of timesteps is none."""
        self.band(tau)

    def band(self, tau: int) -> tuple[int, int]:
        """The least and the largest timestep of step tau."""
        T, lo, hi = len(self.prior.alpha_bar), at(self.t_min, tau), at(self.t_max, tau)
        if self.anneal:
            lo = hi = annealed(tau, self.anneal, lo, hi)
        if not 0 <= lo <= hi <= 1:
            raise UserError(f"t_min {lo:g} and t_max {hi:g} at step {tau}: need 0 <= t_min <= t_max <= 1")
        return min(round(T * lo), T - 1), min(round(T * hi), T - 1)

    def timesteps(self, B: int, tau: int, rng: Streams) -> Tensor:
        """Timesteps [B] of the step, on the CPU."""
        lo, hi = self.band(tau)
        return rng.rows("t", partial(timesteps, lo=lo, hi=hi, per_sample=self.per_sample_t, group=self.prior.group), B)

    def predict(self, x_t: Tensor, t: Tensor, views: Views, tau: int) -> Tensor:
        """The guided noise prediction: one call of the prior for all that it is told of every view."""
        condition = self.prompts(views)
        R, B = condition.text.shape[:2]
        rows = self.prior.eps(x_t.repeat(R, 1, 1, 1), t.repeat(R), **condition.rows())
        cond, uncond, *negatives = rows.view(R, B, *x_t.shape[1:])
        if negatives:
            cond = perp_neg(uncond, cond, torch.stack(negatives), condition.weights)
        return guided(uncond, cond, at(self.scale, tau), self.cfg, self.rescale)
