"""Score Jacobian chaining (Wang et al., CVPR 2023): the chain rule applied to the score of a denoiser.

    residual = eps_guided(x_t) - eps,   or eps_guided(x_t) without variance reduction

The paper perturbs x to z = x + sigma' eps, sigma' = sigma / alpha, shows the network x_t = z / sqrt(1 + sigma'^2), and
takes (D - x) / sigma' as the score, where D = z - sigma' eps_guided is the denoised z. That is eps - eps_guided: SDS
with w = 1. Without variance reduction z takes the place of x: the same expectation, and usually more variance.
"""

from typing import Any

from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.core.schedules import Schedule
from mpiprop.guidance.distillation import Guided, Sample
from mpiprop.guidance.queries import Asking
from mpiprop.guidance.timesteps import Weighting
from mpiprop.priors.base import Prior


class SJC(Guided):
    """The gradient eps_guided - eps of each view, or eps_guided alone.

    scale: of classifier-free guidance, uncond + scale (cond - uncond); the paper's 100 is 101 in this form
    var_red: subtract the noise eps, which does not change the mean of the gradient and lowers its variance
    """

    name = "sjc"

    def __init__(self, prior: Prior, prompts: Conditions, *, weighting: Weighting = "uniform",
                 scale: Schedule = 101.0, var_red: bool = True, **keys: Any) -> None:
        super().__init__(prior, prompts, weighting=weighting, scale=scale, **keys)
        self.var_red, self.baseline = var_red, float(var_red)

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided - eps, or eps_guided."""
        guided = yield from self.guided(sample, sample.x_t, sample.t)
        return guided - sample.eps if self.var_red else guided
