"""Variational score distillation (ProlificDreamer, section 3.2): follow the prior's score less that of the renders.

B views, x0 and x_t [B, C, h, w] in the prior's space. The score of the renders is what a LoRA of the prior learns, whose
numbers are part of theta: its gradient comes with the scene's, from one call, and neither enters the other.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.guidance.base import clipped, surrogate, timesteps
from mpiprop.guidance.sds import SDS
from mpiprop.priors.base import Prior
from mpiprop.priors.lora import Lora
from mpiprop.priors.prompts import Prompts
from mpiprop.views.cameras import Image, Views


class VSD(SDS):
    """The gradient w(t) (eps_guided - eps_lora) of each view in the prior's space, carried to the image by the encoder.

    scale: of classifier-free guidance
    cfg: A: cond + scale (cond - uncond); B: uncond + scale (cond - uncond), as published
    weighting: w(t): sds: 1 - alpha_bar; uniform: 1; fantasia3d: sqrt(alpha_bar) (1 - alpha_bar)
    t_min: smallest timestep (fraction of all)
    t_max: largest timestep (fraction of all)
    per_sample_t: draw t for each view; otherwise one for the whole batch
    grad_clip: largest absolute value of an entry of the gradient
    lora_weight: of the LoRA's own loss, denoising the renders at any t
    camera_drop: probability that a batch shows the LoRA no camera as it learns
    """

    def __init__(self, prior: Prior, prompts: Prompts, lora: Lora, *, scale: Schedule = 7.5, cfg: Literal["A", "B"] = "B",
                 weighting: Literal["sds", "uniform", "fantasia3d"] = "sds", t_min: Schedule = 0.02,
                 t_max: Schedule = 0.98, per_sample_t: bool = True, grad_clip: Schedule | None = None,
                 lora_weight: Schedule = 1.0, camera_drop: float = 0.1) -> None:
        super().__init__(prior, prompts, scale=scale, cfg=cfg, weighting=weighting, t_min=t_min, t_max=t_max,
                         per_sample_t=per_sample_t, grad_clip=grad_clip)
        self.lora, self.lora_weight, self.camera_drop = lora, lora_weight, camera_drop

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Tensor, dict[str, float]]:
        """A scalar whose gradient in x0 is g / B and in the LoRA that of its loss; numbers: vsd (|g|^2 / 2B), lora (the
        loss), grad_norm (of g / B), t."""
        x0 = self.prior.encode(image.rgb.permute(0, 3, 1, 2), rng)
        to, text, camera = x0.device, self._text(len(x0)), views.c2w.flatten(1).to(x0.device)
        t = self.timesteps(len(x0), tau, rng)
        bar = self.prior.alpha_bar[t].float().view(-1, 1, 1, 1).to(to)
        eps = rng.rows("noise", normal, *x0.shape).to(to)
        x_t = bar.sqrt() * x0.detach() + (1 - bar).sqrt() * eps
        own = self.lora.eps(x_t, t.to(to), text, camera, tau)
        g = self.weight(bar) * (self.predict(x_t, t.to(to), views, tau) - own)
        if self.grad_clip is not None:
            g = clipped(g, at(self.grad_clip, tau))
        scalar, loss = surrogate(x0, g), self._learn(x0, text, camera, tau, rng)
        numbers = torch.stack([scalar.detach(), loss.detach(), g.norm() / len(g)]).tolist()
        return scalar + at(self.lora_weight, tau) * loss, {"vsd": numbers[0], "lora": numbers[1], "grad_norm": numbers[2],
                                                           "t": float(t.float().mean())}

    def _learn(self, x0: Tensor, text: Tensor, camera: Tensor, tau: int, rng: Streams) -> Tensor:
        """The LoRA's loss on x0, with draws of its own."""
        t = rng.rows("lora.t", partial(timesteps, lo=0, hi=len(self.prior.alpha_bar) - 1), len(x0)).to(x0.device)
        noise = rng.rows("lora.noise", normal, *x0.shape).to(x0.device)
        if uniform(rng("lora.camera"), 1) < self.camera_drop:
            camera = torch.zeros_like(camera)
        return self.lora.loss(x0, t, noise, text, camera, tau)

    def _text(self, B: int) -> Tensor:
        """The prompt without a view, [B, N, E]."""
        return self.prompts.embeddings[-2].expand(B, -1, -1)
