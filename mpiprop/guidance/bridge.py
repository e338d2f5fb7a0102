"""Score distillation as a bridge between distributions (SDS-Bridge, McAllister et al., NeurIPS 2024).

    residual = eps_target(x_t) - eps_source(x_t)

Score distillation moves renders from a source distribution to that of the prompt. SDS estimates the noise in the
source by the noise that was drawn, whatever the renders look like. Here a text describes the source: renders as SDS
leaves them, oversaturated and smooth. It is a second stage, after one of SDS (the paper: 20 000 steps of SDS with
scale 100, then 5000 steps of this). Both texts are the same for all views.
"""

from typing import Any

from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.config.components import Text
from mpiprop.guidance.distillation import Distillation, Sample
from mpiprop.guidance.queries import Asking
from mpiprop.guidance.timesteps import Weighting
from mpiprop.priors.base import Prior


class Bridge(Distillation):
    """The gradient w(t) (eps_target - eps_source) of each view; no classifier-free guidance.

    target: what the renders should become
    source: what they are
    """

    name = "bridge"

    def __init__(self, prior: Prior, prompts: Conditions, *, weighting: Weighting = "uniform",
                 target: Text = Text("{prompt}, ."),
                 source: Text = Text("{prompt}, oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad "
                                     "structure, noisy, malformed"), **keys: Any) -> None:
        super().__init__(prior, prompts, weighting=weighting, **keys)

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_target - eps_source."""
        texts = sample.condition.texts
        target, source = yield [sample.ask(sample.x_t, sample.t, texts[name]) for name in ("target", "source")]
        return target - source
