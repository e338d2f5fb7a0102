"""Classifier score distillation (Yu et al., ICLR 2024): the part of SDS that the prompt decides, alone.

    residual = a eps_c(x_t) + b eps_n(x_t) + c eps_u(x_t) + d eps,   a + b + c + d = 0

With (a, b, c, d) = (1, 0, -1, 0) it is eps_c - eps_u, the score of an implicit classifier of the prompt. b is the
weight of a negative text. SDS with a guidance scale s is (s, 0, 1 - s, -1). The weights may change over the steps, as in
the authors' code:

    IF stage: negative: [[0, 0], [5000, -1]], unconditional: [[0, -1], [5000, 0]], normalise: true, weighting: uniform
    refinement: negative: [[0, -1], [10000, -0.5]], unconditional: [[0, 0], [10000, -0.5]], t_max: 0.5
"""

from typing import Any

from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.config.components import Text
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.guidance.distillation import Distillation, Sample, predictions
from mpiprop.guidance.queries import Asking, together
from mpiprop.priors.base import Prior
from mpiprop.views.cameras import Views


class CSD(Distillation):
    """The gradient w(t) (a eps_cond + b eps_negative + c eps_uncond + d eps) of each view; a = 1, c = -1, b = d = 0.

    conditional: weight a of the prediction under the prompt
    negative: weight b of the prediction under the negative text; a step where it is 0 does not ask for it
    unconditional: weight c of the prediction under the unconditional text
    noise: weight d of the noise that was added
    negative_text: what renders should not look like
    normalise: divide each view's residual by its Euclidean norm. The authors divide by that of the batch on a GPU,
        which is the same for one view; that of a view does not depend on how many ranks share the batch
    """

    name = "csd"

    def __init__(self, prior: Prior, prompts: Conditions, *, conditional: Schedule = 1.0, negative: Schedule = 0.0,
                 unconditional: Schedule = -1.0, noise: Schedule = 0.0,
                 negative_text: Text = Text("oversaturated color, ugly, tiling, low quality, noisy"), normalise: bool = False,
                 **keys: Any) -> None:
        super().__init__(prior, prompts, **keys)
        self.weights = {"conditional": conditional, "negative": negative, "unconditional": unconditional,
                        "noise": noise}
        self.normalise = normalise

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns the weighted sum of predictions and noise."""
        a, b, c, d = (at(weight, sample.tau) for weight in self.weights.values())
        asked = [sample.predicted(sample.x_t, sample.t, sample.condition.texts["negative_text"])] if b else []
        (uncond, cond), *negative = yield from together(predictions(sample, sample.x_t, sample.t), *asked)
        residual = a * cond + c * uncond
        for eps in negative:
            residual = residual + b * eps
        if d:
            residual = residual + d * sample.eps
        if self.normalise:
            residual = residual / residual.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1, 1)
        return residual

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where the weights do not sum to zero: noise would be left over in the residual."""
        super().check(views, tau)
        found = {name: at(weight, tau) for name, weight in self.weights.items()}
        if abs(sum(found.values())) > 1e-6:
            raise UserError(f"{', '.join(f'{name} {weight:g}' for name, weight in found.items())} at step {tau}: "
                            "need a sum of 0")
