"""A prior whose pictures are two numbers, drawn from a mixture of Gaussians: every prediction is known exactly."""

import torch
from torch import Tensor

from mpiprop.conditioning.base import Condition
from mpiprop.core.streams import Streams
from mpiprop.guidance.distillation import Sample
from mpiprop.priors.base import alpha_bar
from mpiprop.priors.diffusion import Diffusion
from mpiprop.views.cameras import orbit

MEANS = torch.tensor([[2.0, 0.0], [-1.5, 1.2], [0.0, -2.0]], dtype=torch.float64)
SPREAD = 0.35
TEXTS = {"": (0.5, 0.3, 0.2), "prompt": (0.625, 0.375, 0.0), "bad": (0.0, 0.2, 0.8), "other": (0.1, 0.9, 0.0)}
TABLE = alpha_bar({"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                   "beta_end": 0.012})


class Mixture:
    """Predicts as networks of a kind do: the noise, v, or the velocity of a rectified flow. A text is the weights [B, 3]
    of the components. float64 throughout."""

    alpha_bar, group = TABLE, 1

    def __init__(self, prediction: str = "epsilon") -> None:
        self.prediction, self.device = prediction, torch.device("cpu")
        self.asked = 0  # pictures that predictions were made for

    def eps(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.asked += len(x_t)
        bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        truth = exact(x_t, alpha, sigma, text)
        if self.prediction == "flow":  # x = (1 - tau) x0 + tau eps is x_t / (alpha + sigma); the network gives eps - x0
            velocity = truth - (x_t - sigma * truth) / alpha
            tau = sigma / (alpha + sigma)
            return x_t / (alpha + sigma) + (1 - tau) * velocity
        out = truth if self.prediction == "epsilon" else alpha * truth - sigma * (x_t - sigma * truth) / alpha
        return Diffusion.noise_of(self, out, x_t, t)


def exact(x_t: Tensor, alpha: Tensor, sigma: Tensor, weights: Tensor) -> Tensor:
    """E[eps | x_t] = sigma (x_t - alpha m) / v, averaged over components by how likely x_t is under each."""
    away = x_t.view(-1, 1, 2) - alpha.view(-1, 1, 1) * MEANS  # [B, 3, 2]
    v = (alpha ** 2 * SPREAD ** 2 + sigma ** 2).view(-1, 1)
    share = (weights.log() - away.square().sum(-1) / (2 * v)).softmax(-1)
    return ((share[..., None] * away).sum(1) * sigma.view(-1, 1) / v).view_as(x_t)


def sample_of(prior: Mixture, x: Tensor, t: Tensor, rng: Streams = Streams(0, 0), negatives: tuple[str, ...] = (),
              tau: int = 0, **named: str) -> Sample:
    """The sample of renders x [B, 2, 1, 1], told "prompt", against nothing, with a guidance's own texts by name."""
    def text(of: str) -> dict[str, Tensor]:
        return {"text": torch.tensor(TEXTS[of], dtype=torch.float64).expand(len(x), 3)}
    condition = Condition(text("prompt"), text(""), tuple(map(text, negatives)),
                          torch.full((len(negatives), len(x)), -0.5, dtype=torch.float64),
                          {name: text(of) for name, of in named.items()})
    views = orbit(torch.zeros(len(x)), 0.2, 1.8, 0.8, (8, 8))
    return Sample(prior, x, t, condition, views, tau, rng.part(range(len(x)), len(x)))


class Told:
    """In the place of encoded prompts: a guidance needs them only to make samples."""

    def to(self, device) -> "Told":
        return self
