"""Score distillation sampling (DreamFusion, Eq. (3)): render, add noise, and follow what the prior would take away."""

from typing import Any, Literal

from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.core.schedules import Schedule
from mpiprop.guidance.distillation import GuidedEitherForm, Sample
from mpiprop.guidance.queries import Asking
from mpiprop.priors.base import Prior


class SDS(GuidedEitherForm):
    """The gradient w(t) (eps_guided - eps) of each view in the prior's space, carried to the image by the encoder."""

    name, baseline = "sds", 1.0

    def __init__(self, prior: Prior, prompts: Conditions, *, scale: Schedule = 100.0, cfg: Literal["A", "B"] = "A",
                 **keys: Any) -> None:
        super().__init__(prior, prompts, scale=scale, cfg=cfg, **keys)

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided - eps."""
        return (yield from self.guided(sample, sample.x_t, sample.t)) - sample.eps
