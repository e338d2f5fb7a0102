"""Refinement towards a denoised picture (DreamGaussian, section 3.3; SDEdit, Meng et al. 2022): render, add a little noise,
let the prior take it away in several steps, and follow the squared distance to what it made.

B views, N steps from all noise to none, x0 and x_t [B, C, h, w] in the prior's space. DDIM: Song et al. 2021, Eq. (12) with
eta = 0, which draws nothing.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import Streams, normal
from mpiprop.guidance.sds import SDS
from mpiprop.priors.base import Prior
from mpiprop.priors.prompts import Prompts
from mpiprop.views.cameras import Image, Views


class Refine(SDS):
    """The squared distance of each view to what the prior makes of it in some steps; nothing of the prior is differentiated.

    scale: of classifier-free guidance
    cfg: A: cond + scale (cond - uncond); B: uncond + scale (cond - uncond), as DreamGaussian was published
    steps: from all noise to none, N
    strength: share of them that is left out, the noisiest (0 to 1): the larger, the closer to the render; a step of the
        optimiser costs the rest of them
    rescale: mix of the prediction rescaled to the conditional one's deviation, against saturation; 0: off
    """

    def __init__(self, prior: Prior, prompts: Prompts, *, scale: Schedule = 100.0, cfg: Literal["A", "B"] = "B",
                 steps: int = 50, strength: Schedule = ((0, 0.8), (50, 0.95)), rescale: float = 0.0) -> None:
        super().__init__(prior, prompts, scale=scale, cfg=cfg, rescale=rescale)
        if not 1 <= steps <= len(prior.alpha_bar):
            raise UserError(f"steps {steps}: needs a number in [1, {len(prior.alpha_bar)}]")
        self.steps, self.strength = steps, strength

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Tensor, dict[str, float]]:
        """The mean squared distance of rgb to the refined picture; numbers: refine (that distance), t (of the noise)."""
        rgb = image.rgb.permute(0, 3, 1, 2)
        times = self.times(tau)
        refined = F.interpolate(self.refined(rgb, views, tau, rng), rgb.shape[2:], mode="bilinear", antialias=True)
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

    @torch.no_grad()
    def refined(self, rgb: Tensor, views: Views, tau: int, rng: Streams) -> Tensor:
        """What the prior makes of renders rgb [B, 3, H, W]: [B, 3, h, w] in [0, 1] at its own resolution. The last step ends
        at the picture itself."""
        x0 = self.prior.encode(rgb, rng)
        times, eps = self.times(tau), rng.rows("noise", normal, *x0.shape).to(x0.device)
        for t, bar in zip(times, self.prior.alpha_bar[times].tolist()):
            x_t = bar ** 0.5 * x0 + (1 - bar) ** 0.5 * eps
            eps = self.predict(x_t, torch.full((len(x_t),), t, device=x_t.device), views, tau)
            x0 = (x_t - (1 - bar) ** 0.5 * eps) / bar ** 0.5
        return self.prior.decode(x0).clamp(0, 1)
