"""Adaptive density control: how Gaussians are cloned, split, removed and reset (Kerbl et al. 2023, section 5;
DreamGaussian, section 3.1).

Each operation makes a state of a state and changes nothing else: rows of theta, of the optimiser's averages and of the
statistics go together, and every Gaussian keeps its id. New ones begin with averages of zero. Letters: N Gaussians, M of them
after an operation, n new ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor

from mpiprop.core import ancestry
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Drift, Entry, State, Theta
from mpiprop.geometry.quaternions import rotate

MOVES = "moves"  # statistic: norms of the gradient of each view's own loss by the point's place on the screen (half images)
VIEWS = "views"  # statistic: how many views see the point
CHILDREN, SHRINK = 2, 1.6  # of a split, and how much smaller they are


@dataclass(frozen=True)
class Rules:
    """When Gaussians change and which; the keys of Gaussians."""

    every: int
    first: int
    until: int
    gradient: float
    size: float
    most: int
    radius: float
    least_opacity: float
    largest: float
    reset_every: int
    reset_opacity: float
    cross: bool

    def changes(self, tau: int) -> bool:
        """Whether Gaussians come and go when tau steps are done."""
        return self._turn(self.every, tau)

    def resets(self, tau: int) -> bool:
        """Whether opacities are reset when tau steps are done."""
        return self._turn(self.reset_every, tau)

    def due(self, tau: int) -> bool:
        """Whether Gaussians change in any way when tau steps are done."""
        return self.changes(tau) or self.resets(tau)

    def ends(self, T: int) -> list[int]:
        """The steps beyond which no window reaches, the last of them T."""
        return [tau for tau in range(1, T) if not self.cross and self.due(tau)] + [T]

    def _turn(self, every: int, tau: int) -> bool:
        return every > 0 and tau > 0 and tau % every == 0 and self.first <= tau <= self.until


class Densify:
    """The structure of a cloud: statistics of every step, and what the rules make of them.

    Its random numbers are those of (`streams` of the step, id of the parent): a step that is rolled out again splits alike.
    """

    def __init__(self, rules: Rules, streams: Callable[[int], Streams]) -> None:
        self.rules, self.streams = rules, streams

    def start(self, x: State) -> State:
        """The state before the first step, with statistics of no step yet."""
        return replace(x, statistics={name: x.theta.flat.new_zeros(x.theta.layout.N) for name in (MOVES, VIEWS)})

    def measured(self, drift: Drift, x: State) -> State:
        """The state with the measurements of the drift that led to it."""
        return replace(x, statistics={name: total + drift.statistics[name] for name, total in x.statistics.items()})

    def due(self, tau: int) -> bool:
        """Whether Gaussians change in any way when tau steps are done."""
        return self.rules.due(tau)

    def changed(self, x: State) -> State:
        """The state with the Gaussians that the rules make of its statistics."""
        rules = self.rules
        if rules.changes(x.tau):
            x = grown(x, rules, self.streams(x.tau))
            x = pruned(x, rules.least_opacity, rules.largest, rules.radius)
        return reset(x, rules.reset_opacity) if rules.resets(x.tau) else x


def values(x: Theta, name: str) -> Tensor:
    """The raw numbers [N, ...] of the shape's tensor `name`; a view."""
    entry = seat(x, name)
    return x.flat[entry.span].view(entry.shape)


def seat(x: Theta, name: str) -> Entry:
    """Where the shape's tensor `name` is."""
    (entry,) = (entry for entry in x.layout.entries if entry.name == f"geometry.{name}")
    return entry


def gathered(x: State, rows: Tensor, ids: Tensor, old: int) -> State:
    """The state of the Gaussians `rows` [M] under the names `ids` [M, A]; all after the first `old` are new."""
    rows_before = rows.where(torch.arange(len(rows)) < old, -1)  # new ones begin with averages of zero
    return x.gather_points(x.theta.gather_points(rows, ids), rows_before)


def grown(x: State, rules: Rules, rng: Streams) -> State:
    """The state after those Gaussians whose mean gradient on the screen is as large as the rules say have been cloned, or
    split where they are large. Statistics begin anew."""
    mean = (x.statistics[MOVES] / x.statistics[VIEWS].clamp(min=1)).cpu()
    chosen = mean >= rules.gradient
    if len(mean) + int(chosen.sum()) > rules.most:  # those of the largest gradients; of equal ones, the first
        order = torch.where(chosen, mean, -1).sort(descending=True, stable=True).indices
        chosen[order[max(0, rules.most - len(mean)):]] = False
    large = values(x.theta, "scale").amax(1).cpu() > log(rules.size)
    clones, splits = (chosen & ~large).nonzero()[:, 0], (chosen & large).nonzero()[:, 0]
    stay, ids = (~(chosen & large)).nonzero()[:, 0], x.theta.ancestry
    rows = torch.cat([stay, clones, *[splits] * CHILDREN])
    names = ancestry.joined([ids[stay], ancestry.born(ids[clones], x.tau, 0),
                            *(ancestry.born(ids[splits], x.tau, child) for child in range(1, CHILDREN + 1))])
    y = gathered(x, rows, names, len(stay))
    theta = y.theta
    if len(splits):
        new = slice(len(stay) + len(clones), None)
        moved = torch.stack([normal(rng(f"split/{one}"), CHILDREN, 3) for one in ids[splits, 0].tolist()], 1).flatten(0, 1)
        scale = values(theta, "scale")[new]
        values(theta, "position")[new] += rotate(values(theta, "rotation")[new], scale.exp() * moved.to(scale.device))
        scale -= log(SHRINK)
    return replace(y, statistics={name: torch.zeros_like(total) for name, total in y.statistics.items()})


def pruned(x: State, least_opacity: float, largest: float, radius: float) -> State:
    """The state without Gaussians of a lower opacity, a larger standard deviation (0: however large) or outside the box
    [-radius, radius]^3; the most opaque one always stays."""
    opacity, scale = values(x.theta, "opacity")[:, 0].sigmoid().cpu(), values(x.theta, "scale").amax(1).cpu()
    kept = (opacity >= least_opacity) & (values(x.theta, "position").abs().amax(1).cpu() <= radius)
    if largest:
        kept &= scale <= log(largest)
    kept[opacity.argmax()] |= not kept.any()
    rows = kept.nonzero()[:, 0]
    return gathered(x, rows, x.theta.ancestry[rows], len(rows))


def reset(x: State, opacity: float) -> State:
    """The state with opacities of at most `opacity`, their averages zero."""
    theta = Theta(x.theta.flat.clone(), x.theta.layout, x.theta.ancestry.clone())
    values(theta, "opacity").clamp_(max=log(opacity / (1 - opacity)))
    opacities = seat(theta, "opacity").span
    slots = {name: slot.clone() for name, slot in x.slots.items()}
    for slot in slots.values():
        slot[opacities] = 0
    return replace(x, theta=theta, slots=slots)
