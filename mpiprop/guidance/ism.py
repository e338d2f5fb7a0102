"""Interval score matching (LucidDreamer, Liang et al., CVPR 2024): two points of one deterministic trajectory.

    residual = eps_u(x_t) + s (eps_c(x_t) - eps_u(x_t)) - eps_0(x_s),   x_s -> x_t one DDIM step, s = t - interval

SDS compares with noise drawn anew in each step, and its targets differ from step to step. ISM inverts the render
instead: DDIM carries it from almost no noise up to s, in strides, and in one more step to t, by predictions eps_0
under a text of their own (`inversion_text`). The prediction at s, which the last step uses, is the one that is
subtracted. The text of eps_u is `prompts.negative`; the authors give it a negative prompt.
"""

from typing import Any

from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.config.components import Text
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import normal
from mpiprop.guidance import ddim
from mpiprop.guidance.distillation import Guided, Sample
from mpiprop.guidance.queries import Asking
from mpiprop.guidance.timesteps import Weighting
from mpiprop.priors.base import Prior
from mpiprop.views.cameras import Views


class ISM(Guided):
    """The gradient w(t) (eps_guided(x_t) - eps_inversion(x_s)) of each view, x_s and x_t found by DDIM inversion.

    inversion_text: prompt of the inversion
    interval: t - s (fraction of all); the authors' configurations end at 0.025, 0.05 or 0.08
    stride: between the timesteps of the inversion up to s (fraction of all)
    channel_noise: standard deviation of noise common to all entries of a channel, where the inversion begins
    """

    name = "ism"

    def __init__(self, prior: Prior, prompts: Conditions, *, weighting: Weighting = "snr",
                 t_max: Schedule = ((0, 0.98), (1500, 0.5)), per_sample_t: bool = False, inversion_text: Text = Text(""),
                 interval: Schedule = ((0, 0.1), (1500, 0.05)), stride: float = 0.2, channel_noise: float = 0.1,
                 **keys: Any) -> None:
        super().__init__(prior, prompts, weighting=weighting, t_max=t_max, per_sample_t=per_sample_t, **keys)
        if not 0 < stride <= 1:
            raise UserError(f"stride {stride:g}: needs a number above 0 and at most 1")
        self.interval, self.stride, self.channel_noise = interval, stride, channel_noise

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided(x_t) - eps_inversion(x_s)."""
        T, t = len(self.prior.alpha_bar), sample.t
        s = (t - round(T * at(self.interval, sample.tau))).clamp(min=0)

        def eps(x: Tensor, at: Tensor) -> Asking[Tensor]:
            return sample.predicted(x, at, sample.condition.texts["inversion_text"])
        channels = sample.rng.rows("noise.channel", normal, *sample.x.shape[:2], 1, 1).to(s.device)
        times = ddim.ladder(s, max(1, round(T * self.stride)))
        x_0 = sample.noised(times[0], sample.eps + self.channel_noise * channels)
        x_s = yield from ddim.inverted(sample, x_0, times, eps)
        eps_s = yield from eps(x_s, s)
        x_t = ddim.step(self.prior, x_s, eps_s, s, t)
        return (yield from self.guided(sample, x_t, t)) - eps_s

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where the range of timesteps is empty, or the interval is no fraction."""
        super().check(views, tau)
        if not 0 <= (interval := at(self.interval, tau)) <= 1:
            raise UserError(f"interval {interval:g} at step {tau}: needs a number in [0, 1]")
