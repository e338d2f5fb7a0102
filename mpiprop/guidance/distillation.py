"""What every score distillation shares: noise, its level and weight, clipping, and the surrogate loss.

    x = encode(render),  x_t = alpha_t x + sigma_t eps,  g = w(t) residual(x_t, t, eps),  d loss / d x = g / B

A member of the family is a subclass with a `residual`: a coroutine that asks networks (queries.py) and returns the
residual. Every draw is made here, by row of the whole batch, so that parts of a batch see what the whole would.

Letters: B views, C channels, T timesteps, x and predictions [B, C, h, w] in the prior's space.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mpiprop.conditioning.base import Condition, Conditions
from mpiprop.config.components import Node
from mpiprop.core import variance
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.guidance.base import Numbers, Scalar
from mpiprop.guidance.cfg import guided, perp_neg
from mpiprop.guidance.queries import Asking, Query, answered
from mpiprop.guidance.timesteps import WEIGHTS, Weighting, annealed, uniform_timesteps
from mpiprop.priors.base import Inputs, Latents, Prior, Timesteps, alpha_bar_at, alpha_sigma
from mpiprop.views.cameras import Image, Views

SKETCH = 32  # numbers in the sketch of a view's gradient (core.variance)


@dataclass(frozen=True)
class Sample:
    """The renders of one evaluation, and what is drawn for them."""

    prior: Prior
    x: Latents  # not differentiable
    t: Timesteps  # int64, on the device of x
    condition: Condition
    views: Views
    tau: int
    rng: Streams
    image: Image | None = None  # the renders themselves
    measured: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """What the evaluation measures beside its gradient: scalars for the log, and sums over the views (`base.Numbers`)."""

    @cached_property
    def eps(self) -> Tensor:
        """The noise of this evaluation, standard normal."""
        return self.noise("noise")

    @cached_property
    def x_t(self) -> Tensor:
        """x at its noise level."""
        return self.noised(self.t, self.eps)

    @property
    def level(self) -> Int[Tensor, " B"]:
        """The noise level of each view (core.variance)."""
        return variance.level(self.t, len(self.prior.alpha_bar))

    def noised(self, t: Timesteps, eps: Float[Tensor, "#B C h w"]) -> Latents:
        """Returns alpha_t x + sigma_t eps for timesteps t."""
        alpha, sigma = alpha_sigma(self.prior, t)
        return alpha * self.x + sigma * eps

    def noise(self, stream: str) -> Latents:
        """Returns standard normal draws in the shape of x, the rows of these views in the whole batch."""
        return self.rng.rows(stream, normal, *self.x.shape).to(self.x.device)

    def uniform(self, stream: str) -> Float[Tensor, " B"]:
        """Returns uniform draws in [0, 1), the rows of these views in the whole batch; a draw for each group of views
        that the prior denoises together."""
        draws = self.rng.rows(stream, uniform, len(self.x)).to(self.x.device)
        return draws.view(-1, self.prior.group)[:, :1].expand(-1, self.prior.group).flatten()

    def ask(self, x_t: Latents, t: Timesteps, inputs: Inputs) -> Query:
        """Returns the question to the prior."""
        return Query(self.prior, x_t, t, inputs)

    def predicted(self, x_t: Tensor, t: Tensor, inputs: Inputs) -> Asking[Tensor]:
        """A coroutine that returns the prior's noise prediction."""
        (eps,) = yield [self.ask(x_t, t, inputs)]
        return eps


class Distillation:
    """The gradient w(t) residual of each view in the prior's space, carried to the image by the encoder.

    weighting: w(t): sds: 1 - alpha_bar; uniform: 1; fantasia3d: sqrt(alpha_bar) (1 - alpha_bar); snr: sigma / alpha
    t_min: smallest timestep (fraction of all)
    t_max: largest timestep (fraction of all)
    anneal: over so many steps t goes from t_max to t_min by a square root, as in HiFA; 0: t is drawn
    per_sample_t: draw t for each view (those that the prior denoises together share it); otherwise one for the whole batch
    grad_clip: largest absolute value of an entry of the gradient
    variates: control variates, which lower the variance of the residual and leave its mean as it is: Stein or Noise
    """

    name: str  # of half the squared gradient in the log
    baseline = 0.0  # so many times the noise of the evaluation are subtracted in the residual
    reads_normals = False

    def __init__(self, prior: Prior, prompts: Conditions, *, weighting: Weighting = "sds",
                 t_min: Schedule = 0.02, t_max: Schedule = 0.98, anneal: int = 0, per_sample_t: bool = True,
                 grad_clip: Schedule | None = None, variates: Node | None = None) -> None:
        self.prior, self.prompts, self.weight = prior, prompts.to(prior.device), WEIGHTS[weighting]
        self.t_min, self.t_max, self.anneal, self.per_sample_t = t_min, t_max, anneal, per_sample_t
        self.grad_clip = grad_clip
        self.variates: Any = variates  # the component that the node describes

    def residual(self, sample: Sample) -> Asking[Tensor]:
        """A coroutine that asks networks and returns the residual [B, C, h, w]: what a step against it takes away."""
        raise NotImplementedError

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Scalar, Numbers]:
        """Returns the scalar |g|^2 / 2B, whose gradient in x is g / B, plus the weighted `losses`; numbers: both without
        weights, grad_norm (of g / B), t, what the control variates measure, and the moments of g by noise level."""
        x = self.prior.encode(image.rgb.permute(0, 3, 1, 2), rng)
        sample = Sample(self.prior, x.detach(), self.timesteps(len(x), tau, rng).to(x.device), self.prompts(views), views,
                        tau, rng, image)
        g = self.gradient(sample)
        scalar, losses = surrogate(x, g), self.losses(sample)
        numbers = {self.name: scalar, **{name: loss for name, (_, loss) in losses.items()}, "grad_norm": g.norm() / len(g)}
        numbers |= {name: value for name, value in sample.measured.items() if not value.ndim}
        numbers = dict(zip(numbers, torch.stack([number.detach() for number in numbers.values()]).tolist()))
        for weight, loss in losses.values():
            scalar = scalar + weight * loss
        return scalar, numbers | {"t": float(sample.t.float().mean()), "variance": variance.by_level(
            variance.moments(variance.sketch(g.detach().float().flatten(1), SKETCH)), sample.level),
            **{name: value for name, value in sample.measured.items() if value.ndim}}

    def losses(self, sample: Sample) -> dict[str, tuple[float, Tensor]]:
        """Returns the weight and the loss, by name, of what the guidance trains beside the scene; none by default."""
        return {}

    def gradient(self, sample: Sample) -> Latents:
        """Returns g, weighted and clipped."""
        residual = answered(self.residual(sample))
        if self.variates is not None:
            residual = self.variates(residual, self.baseline, sample)
        g = self.weight(alpha_bar_at(self.prior, sample.t)) * residual
        return g if self.grad_clip is None else clipped(g, at(self.grad_clip, sample.tau))

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where the range of timesteps is empty, or that of the clipped gradient."""
        self.band(tau)
        if self.grad_clip is not None and not at(self.grad_clip, tau) > 0:
            raise UserError(f"grad_clip: needs more than 0, got {at(self.grad_clip, tau):g} at step {tau}")

    def band(self, tau: int) -> tuple[int, int]:
        """Returns the least and the largest timestep of step tau."""
        T, (lo, hi) = len(self.prior.alpha_bar), self.fractions(tau)
        return min(round(T * lo), T - 1), min(round(T * hi), T - 1)

    def fractions(self, tau: int) -> tuple[float, float]:
        """Returns the same as fractions of all timesteps. Raises UserError where the range is empty."""
        lo, hi = at(self.t_min, tau), at(self.t_max, tau)
        if self.anneal:
            lo = hi = annealed(tau, self.anneal, lo, hi)
        if not 0 <= lo <= hi <= 1:
            raise UserError(f"t_min {lo:g} and t_max {hi:g} at step {tau}: need 0 <= t_min <= t_max <= 1")
        return lo, hi

    def timesteps(self, B: int, tau: int, rng: Streams) -> Int[Tensor, " {B}"]:
        """Returns the timesteps of the step, on the CPU."""
        lo, hi = self.band(tau)
        draw = partial(uniform_timesteps, lo=lo, hi=hi, per_sample=self.per_sample_t, group=self.prior.group)
        return rng.rows("t", draw, B)


class Guided(Distillation):
    """A distillation under classifier-free guidance.

    scale: of classifier-free guidance, uncond + scale (cond - uncond); 1: the conditional prediction. The scale of a paper
        that writes cond + scale (cond - uncond) is less by 1
    rescale: mix of the prediction rescaled to the conditional one's deviation, against saturation; 0: off
    """

    def __init__(self, prior: Prior, prompts: Conditions, *, scale: Schedule = 7.5, rescale: float = 0.0,
                 **keys: Any) -> None:
        super().__init__(prior, prompts, **keys)
        self.scale, self.rescale = scale, rescale

    def guided(self, sample: Sample, x_t: Tensor, t: Tensor, scale: float | None = None) -> Asking[Tensor]:
        """A coroutine that returns the noise prediction in x_t guided by `scale`, the guidance's own where it is None."""
        uncond, cond = yield from predictions(sample, x_t, t)
        return guided(uncond, cond, self.factor(sample.tau) if scale is None else scale, self.rescale)

    def factor(self, tau: int) -> float:
        """Returns the scale at step tau."""
        return at(self.scale, tau)


class GuidedEitherForm(Guided):
    """A distillation under classifier-free guidance whose scale is given in either of the published forms.

    scale: of classifier-free guidance
    cfg: A: cond + scale (cond - uncond), as DreamFusion; B: uncond + scale (cond - uncond), as Perp-Neg was published
    """

    def __init__(self, prior: Prior, prompts: Conditions, *, scale: Schedule = 7.5, cfg: Literal["A", "B"] = "B",
                 **keys: Any) -> None:
        super().__init__(prior, prompts, scale=scale, **keys)
        self.cfg = cfg

    def factor(self, tau: int) -> float:
        """Returns the scale of form B at step tau."""
        return at(self.scale, tau) + (self.cfg == "A")


def predictions(sample: Sample, x_t: Tensor, t: Tensor) -> Asking[tuple[Tensor, Tensor]]:
    """A coroutine that returns the unconditional and the conditional noise prediction in x_t, the latter moved by Perp-Neg
    where the condition has negatives."""
    condition = sample.condition
    cond, uncond, *negatives = yield [sample.ask(x_t, t, inputs) for inputs in (
        condition.positive, condition.unconditional, *condition.negatives)]
    return uncond, perp_neg(uncond, cond, torch.stack(negatives), condition.weights) if negatives else cond


def clipped(g: Float[Tensor, " *shape"], bound: float) -> Float[Tensor, " *shape"]:
    """Returns g held in [-bound, bound]; what is not finite becomes NaN, to be refused, rather than the bound."""
    return g.clamp(-bound, bound) + 0 * g


def surrogate(x: Float[Tensor, " *shape"], g: Float[Tensor, " *shape"]) -> Scalar:
    """Returns the scalar |g|^2 / 2B whose gradient in x is exactly g / B; nothing else is differentiated."""
    g = g.detach()
    return ((x - x.detach()) * g + g.square() / 2).sum() / len(x)
