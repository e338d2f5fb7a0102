"""Refinement towards a denoised picture (DreamGaussian, section 3.3; SDEdit, Meng et al. 2022): render, add a little noise,
let the prior take it away in several steps, and follow the squared distance to what it made.

Letters: B views, N steps from all noise to none, x and x_t [B, C, h, w] in the prior's space. DDIM: Song et al. 2021,
Eq. (12) with eta = 0, which draws nothing.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import Streams
from mpiprop.guidance.base import Numbers, Scalar
from mpiprop.guidance.distillation import GuidedEitherForm, Sample
from mpiprop.guidance.queries import Asking, answered
from mpiprop.priors.base import Prior
from mpiprop.views.cameras import Image, Views


class Refine(GuidedEitherForm):
    """The squared distance of each view to what the prior makes of it in some steps; nothing of the prior is differentiated.

    scale: of classifier-free guidance
    cfg: A: cond + scale (cond - uncond); B: uncond + scale (cond - uncond), as DreamGaussian was published
    steps: from all noise to none, N
    strength: share of them that is left out, the noisiest (0 to 1): the larger, the closer to the render; a step of the
        optimiser costs the rest of them
    rescale: mix of the prediction rescaled to the conditional one's deviation, against saturation; 0: off
    """

    def __init__(self, prior: Prior, prompts: Conditions, *, scale: Schedule = 100.0, cfg: Literal["A", "B"] = "B",
                 steps: int = 50, strength: Schedule = ((0, 0.8), (50, 0.95)), rescale: float = 0.0) -> None:
        super().__init__(prior, prompts, scale=scale, cfg=cfg, rescale=rescale)
        if not 1 <= steps <= len(prior.alpha_bar):
            raise UserError(f"steps {steps}: needs a number in [1, {len(prior.alpha_bar)}]")
        self.steps, self.strength = steps, strength

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Scalar, Numbers]:
        """Returns the mean squared distance of rgb to the refined picture; numbers: refine (that distance), t (of the
        noise)."""
        rgb, times = image.rgb.permute(0, 3, 1, 2), self.times(tau)
        x = self.prior.encode(rgb, rng).detach()
        t = torch.full((len(x),), times[0], device=x.device)
        refined = answered(self.refined(Sample(self.prior, x, t, self.prompts(views), views, tau, rng)))
        refined = F.interpolate(refined, rgb.shape[2:], mode="bilinear", antialias=True)
        loss = (rgb - refined).square().mean()
        return loss, {"refine": loss.item(), "t": float(times[0])}

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where the strength is no share."""
        self.times(tau)

    def times(self, tau: int) -> list[int]:
        """The timesteps that are denoised in step tau, the noisiest first; at least one."""
        if not 0 <= (strength := at(self.strength, tau)) <= 1:
            raise UserError(f"strength: {strength:g} at step {tau}; needs a number in [0, 1]")
        each = len(self.prior.alpha_bar) // self.steps
        left = max(self.steps - int(self.steps * strength + 1e-9), 1)
        return [min(each * i + 1, len(self.prior.alpha_bar) - 1) for i in reversed(range(left))]

    def refined(self, sample: Sample) -> Asking[Tensor]:
        """A coroutine that returns what the prior makes of the renders: [B, 3, h, w] in [0, 1] at its own resolution. The last
        step ends at the picture itself."""
        times, x, eps = self.times(sample.tau), sample.x, sample.eps
        for t, bar in zip(times, self.prior.alpha_bar[times].tolist()):
            x_t = bar ** 0.5 * x + (1 - bar) ** 0.5 * eps
            eps = yield from self.guided(sample, x_t, torch.full_like(sample.t, t))
            x = (x_t - (1 - bar) ** 0.5 * eps) / bar ** 0.5
        return self.prior.decode(x).clamp(0, 1)
