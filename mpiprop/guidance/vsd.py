"""Variational score distillation (ProlificDreamer, Algorithm 1): the pretrained score less that of the renders themselves.

Letters: B views, x and x_t [B, C, h, w] in the prior's space. The renders' score is what a LoRA of the prior learns, whose
numbers are part of theta: its gradient comes with the scene's, from one call, and neither enters the other.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import uniform
from mpiprop.guidance.distillation import GuidedEitherForm, Sample
from mpiprop.guidance.queries import Asking, Query, together
from mpiprop.guidance.timesteps import uniform_timesteps
from mpiprop.priors.base import Inputs, Prior
from mpiprop.priors.lora import Lora


class VSD(GuidedEitherForm):
    """The gradient w(t) (eps_guided - eps_lora) of each view in the prior's space, carried to the image by the encoder.

    lora_weight: of the LoRA's own loss, denoising the renders at any t
    camera_drop: probability that a batch shows the LoRA no camera as it learns
    camera_scale: share of the LoRA's prediction that is made with the camera; 1: VSD; less: entropic score distillation
        (Wang et al. 2024), which holds against views that all look alike
    """

    name = "vsd"

    def __init__(self, prior: Prior, prompts: Conditions, lora: Lora, *, lora_weight: Schedule = 1.0,
                 camera_drop: float = 0.1, camera_scale: float = 1.0, **keys: Any) -> None:
        super().__init__(prior, prompts, **keys)
        self.lora, self.lora_weight = lora, lora_weight
        self.camera_drop, self.camera_scale = camera_drop, camera_scale

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided - eps_lora."""
        pretrained, rendered = yield from together(self.guided(sample, sample.x_t, sample.t), self.rendered(sample))
        return pretrained - rendered

    def losses(self, sample: Sample) -> dict[str, tuple[float, Tensor]]:
        """Returns the LoRA's loss on the renders, with draws of its own."""
        rng, T = sample.rng, len(self.prior.alpha_bar)
        t = rng.rows("lora.t", partial(uniform_timesteps, lo=0, hi=T - 1), len(sample.x)).to(sample.x.device)
        inputs = self._inputs(sample, shown=bool(uniform(rng("lora.camera"), 1) >= self.camera_drop))
        loss = self.lora.loss(sample.x, t, sample.noise("lora.noise"), **inputs, tau=sample.tau)
        return {"lora": (at(self.lora_weight, sample.tau), loss)}

    def rendered(self, sample: Sample) -> Asking[Tensor]:
        """Returns the noise that the LoRA predicts."""
        network, (x_t, t) = self.lora.network(sample.tau), (sample.x_t, sample.t)
        if self.camera_scale == 1:
            return (yield [Query(network, x_t, t, self._inputs(sample, shown=True))])[0]
        with_camera, without = yield [Query(network, x_t, t, self._inputs(sample, shown)) for shown in (True, False)]
        return torch.lerp(without, with_camera, self.camera_scale)

    def _inputs(self, sample: Sample, shown: bool) -> Inputs:
        """Returns the prompt without a view, and the cameras, zeros unless `shown`."""
        camera = sample.views.c2w.flatten(1).to(sample.x.device)
        return {"text": sample.condition.texts["plain"]["text"], "camera": camera if shown else torch.zeros_like(camera)}
