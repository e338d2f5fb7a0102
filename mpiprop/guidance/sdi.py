"""Score distillation via inversion (Lukoianov et al., NeurIPS 2024): DDIM sampling seen in the space of clean pictures.

    residual = eps_guided(x_t) - eps_inv,   eps_inv = (x_t - alpha_t x) / sigma_t,   x_t the DDIM inversion of x

DDIM, written in its predictions of the clean picture, is SDS whose noise is not drawn but found by inverting x. The
inversion is guided, too, by a scale of the opposite sign, and t falls over the steps, as in sampling. With w = sigma /
alpha the gradient is x - x0(x_t): the render less the clean picture that the prior sees in x_t.

The authors' code inverts up to t + U[0, T / 10) and asks the prior at t all the same; here both are t.
"""

from typing import Any

from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.guidance import ddim
from mpiprop.guidance.distillation import Guided, Sample
from mpiprop.guidance.queries import Asking
from mpiprop.guidance.timesteps import Weighting
from mpiprop.priors.base import Prior, alpha_sigma


class SDI(Guided):
    """The gradient w(t) (eps_guided - eps_inv) of each view, eps_inv the noise that DDIM inversion finds.

    inversion_scale: of classifier-free guidance while inverting, uncond + scale (cond - uncond)
    inversion_steps: DDIM steps from no noise to all noise, of which those up to t are made
    inversion_noise: noise added after each of them, in standard deviations of DDIM
    """

    name = "sdi"

    def __init__(self, prior: Prior, prompts: Conditions, *, weighting: Weighting = "snr",
                 t_min: Schedule = ((0, 0.98), (10000, 0.25)), t_max: Schedule = ((0, 0.98), (10000, 0.25)),
                 inversion_scale: Schedule = -7.5, inversion_steps: int = 10, inversion_noise: float = 0.3,
                 **keys: Any) -> None:
        super().__init__(prior, prompts, weighting=weighting, t_min=t_min, t_max=t_max, **keys)
        if not 1 <= inversion_steps <= len(prior.alpha_bar):
            raise UserError(f"inversion_steps {inversion_steps}: needs a number in [1, {len(prior.alpha_bar)}]")
        self.inversion_scale, self.inversion_noise = inversion_scale, inversion_noise
        self.stride = len(prior.alpha_bar) // inversion_steps

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided - eps_inv."""
        scale = at(self.inversion_scale, sample.tau)
        x_t = yield from ddim.inverted(sample, sample.x, ddim.ladder(sample.t, self.stride),
                                       lambda x, t: self.guided(sample, x, t, scale), self.inversion_noise)
        alpha, sigma = alpha_sigma(self.prior, sample.t)
        return (yield from self.guided(sample, x_t, sample.t)) - (x_t - alpha * sample.x) / sigma
