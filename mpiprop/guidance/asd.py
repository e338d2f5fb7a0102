"""Asynchronous score distillation (ScaleDreamer, Ma et al., ECCV 2024).

    residual = eps_u(x_t) + s (eps_c(x_t) - eps_u(x_t)) - eps_c(x_t'),
    t' = t + shift,  x_t = alpha_t x + sigma_t eps,  x_t' = alpha_t' x + sigma_t' eps

VSD trains a network that predicts the noise in renders better than the prior does. The prior's own error falls as the
noise level rises, so ASD asks the prior at a higher level instead: nothing is trained, and the prior keeps its
understanding of texts. The noise eps is the same at both levels. Without a shift the residual is (s - 1) (eps_c -
eps_u), that is CSD. As t' goes to T, eps_c(x_t') goes to eps, and the residual to that of SDS.
"""

from typing import Any

from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.core.errors import UserError
from mpiprop.guidance.distillation import Guided, Sample
from mpiprop.guidance.queries import Asking, together
from mpiprop.priors.base import Prior, Timesteps


class ASD(Guided):
    """The gradient w(t) (eps_guided(x_t) - eps_cond(x_t')) of each view, t' a little noisier than t.

    eta: largest shift t' - t over t - t_lo, where t_lo is the step's smallest timestep
    random: draw the shift between 0 and the largest, for each view (those that the prior denoises together share it);
        otherwise the shift is the largest
    """

    name = "asd"

    def __init__(self, prior: Prior, prompts: Conditions, *, eta: float = 0.1, random: bool = True,
                 **keys: Any) -> None:
        super().__init__(prior, prompts, **keys)
        if eta < 0:
            raise UserError(f"eta {eta:g}: needs a number of at least 0")
        self.eta, self.random = eta, random

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided(x_t) - eps_cond(x_t')."""
        later = self.shifted(sample)
        guided, conditional = yield from together(
            self.guided(sample, sample.x_t, sample.t),
            sample.predicted(sample.noised(later, sample.eps), later, sample.condition.positive))
        return guided - conditional

    def shifted(self, sample: Sample) -> Timesteps:
        """Returns t': whole, from t to the last timestep."""
        last = len(self.prior.alpha_bar) - 1
        shift = (self.eta * (sample.t - self.band(sample.tau)[0]).double()).minimum(last - sample.t)
        if self.random:
            shift = shift * sample.uniform("shift")
        return (sample.t + shift.long()).clamp(1, last)

    def band(self, tau: int) -> tuple[int, int]:
        """Returns the least and the largest timestep of step tau, rounded down as in the authors' code."""
        T = len(self.prior.alpha_bar)
        lo, hi = (min(int(T * fraction), T - 1) for fraction in self.fractions(tau))
        return lo, hi
