"""The computation unit s: the gradient of one step's loss, a pure function of (theta, tau, seed).

The loss is a sum of terms; each draws views, renders them, asks its guidance for the gradient that the prior wants in the
image, and adds penalties. Everything random inside a term comes from the streams of (seed, tau, its stage and name).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from mpiprop.core import schedules
from mpiprop.core.errors import RunError
from mpiprop.core.schedules import Schedule
from mpiprop.core.streams import Streams, uniform
from mpiprop.core.theta import Drift, Theta
from mpiprop.core.variance import sketch
from mpiprop.guidance.base import Numbers
from mpiprop.guidance.regularizers import NEEDS, PENALTIES
from mpiprop.objective.scene import Scene
from mpiprop.render.base import COSTLY, NORMALS
from mpiprop.views.cameras import Image, Views


SKETCH = "theta", 128  # name of the gradient's sketch among the sums, and how many numbers it has


@dataclass(frozen=True)
class Term:
    """One term of the loss: views, a guidance, and penalties."""

    name: str
    views: Callable[[int, Streams], Views]
    guidance: Callable[[Image, Views, int, Streams], tuple[Tensor, Numbers]]
    weight: Schedule = 1.0
    penalties: Mapping[str, Schedule] = field(default_factory=dict)
    densify: bool = True  # whether its views tell which points of a cloud need company
    group: int = 1  # adjacent views of one prompt

    def needs(self, penalties: Collection[str]) -> set[str]:
        """What the guidance and penalties need of an image that costs time."""
        own = NORMALS if getattr(self.guidance, "reads_normals", False) else frozenset()
        return own.union(*(NEEDS.get(name, ()) for name in penalties)) & COSTLY


class ComputationUnit:
    """s: Theta, tau -> Drift, its gradient in the scene's buffer. Raises RunError where a gradient is not finite."""

    def __init__(self, scene: Scene, terms: list[Term], seed: int, stage: str, prompts: int = 1) -> None:
        self.scene, self.terms, self.seed, self.stage, self.prompts = scene, terms, seed, stage, prompts

    def __call__(self, theta: Theta, tau: int, part: int = 0, parts: int = 1) -> Drift:
        """The drift, or of several parts of the batch that part's share: gradients and losses of all parts add up."""
        start = perf_counter()
        self.scene.load(theta, tau)
        for total in (self.scene.grad, *self.scene.statistics.values()):
            total.zero_()
        scalars, sums = dict[str, float](), dict[str, Tensor]()
        for term in self.terms:
            rng = Streams(self.seed, tau).of(self.stage).of(term.name)
            views = term.views(tau, rng)
            batch = len(views)
            if self.prompts > 1:
                views = views.under(drawn(self.prompts, batch, term.group, rng))
            if not (some := range(batch * part // parts, batch * (part + 1) // parts)):
                continue  # more parts than views
            views, rng, share = views[some.start:some.stop], rng.part(some, batch), len(some) / batch
            weights = {name: weight for name, schedule in term.penalties.items() if (weight := schedules.at(schedule, tau))}
            image = self.scene.render(views, tau, rng, needs=term.needs(weights))
            loss, numbers = term.guidance(image, views, tau, rng)
            loss = schedules.at(term.weight, tau) * loss
            for name, weight in weights.items():
                penalty = PENALTIES[name](image, views)
                numbers[name] = penalty.item()
                loss = loss + weight * penalty
            (share * loss).backward()
            if image.screen and term.densify:
                self.scene.measure(image.screen, batch, views.size)
            for name, value in numbers.items():
                if isinstance(value, Tensor):
                    sums[f"guidance.{term.name}.{name}"] = value.cpu()
                else:
                    scalars[name] = share * value
        name, K = SKETCH
        sums[name] = sketch(self.scene.grad[None], K).cpu()
        if not sums[name].isfinite().all():  # as it is wherever an entry is not finite: no pass of its own over the gradient
            self._refuse_non_finite(tau, scalars)
        return Drift(self.scene.grad, scalars, perf_counter() - start, self.scene.statistics, sums)

    def _refuse_non_finite(self, tau: int, scalars: Mapping[str, float]) -> None:
        grad = self.scene.grad
        if all(isfinite(bound) for bound in torch.stack(grad.aminmax()).tolist()):
            return
        where = self.scene.layout.name_at(int((~grad.isfinite()).nonzero()[0]))
        raise RunError(f"step {tau}: the gradient of {where} is not finite (losses: "
                       + ", ".join(f"{name} {value:.3g}" for name, value in scalars.items())
                       + "). The last good state is kept and `export` shows it; start anew with a lower learning rate or "
                       "guidance scale, or seed")


def drawn(prompts: int, batch: int, group: int, rng: Streams) -> list[int]:
    """Returns the prompts of a batch of views, drawn uniformly for each group of adjacent views."""
    places = (uniform(rng("prompt"), batch // group) * prompts).long().clamp(max=prompts - 1)
    return places.repeat_interleave(group).tolist()
