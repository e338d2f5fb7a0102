"""Noise-free score distillation (Katzir et al., ICLR 2024): SDS without the noise that a prediction fails to cancel.

    residual = delta_D + s (eps_c(x_t) - eps_u(x_t)),   delta_D = eps_u(x_t) for t < 200, else eps_u(x_t) - eps_n(x_t)

The paper splits a prediction into a direction to the domain of real pictures, a direction to the prompt, and a residue
of the noise. At small t the residue is small, and eps_u is the direction to the domain. At larger t that direction is
the difference of eps_u to the prediction under a text that describes bad pictures, in which the residue cancels.
"""

from typing import Any

import torch
from torch import Tensor

from mpiprop.conditioning.base import Conditions
from mpiprop.config.components import Text
from mpiprop.guidance.distillation import Guided, Sample
from mpiprop.guidance.queries import Asking, together
from mpiprop.priors.base import Prior


class NFSD(Guided):
    """The gradient w(t) (eps_guided - eps_negative) of each view, at small t w(t) eps_guided.

    negative_text: what describes pictures out of the domain
    small_t: timestep below which eps_negative is left out (fraction of all)
    """

    name = "nfsd"

    def __init__(self, prior: Prior, prompts: Conditions, *,
                 negative_text: Text = Text("unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, "
                                            "dark, low-resolution, gloomy"), small_t: float = 0.2, **keys: Any) -> None:
        super().__init__(prior, prompts, **keys)
        self.small_t = small_t

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """Returns eps_guided - eps_negative, the latter 0 at small t."""
        guided, negative = yield from together(
            self.guided(sample, sample.x_t, sample.t),
            sample.predicted(sample.x_t, sample.t, sample.condition.texts["negative_text"]))
        small = sample.t < self.small_t * len(self.prior.alpha_bar)
        return guided - torch.where(small.view(-1, 1, 1, 1), 0, negative)
