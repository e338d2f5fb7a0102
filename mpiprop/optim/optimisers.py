"""Optimisers as functions of values: one step on a flat vector, and a prediction of the next steps.

An optimiser holds configuration only; its moments are the slots of the State, so copying, saving and predicting are plain
arithmetic on values. Each works on whole learning-rate groups (contiguous spans), never tensor by tensor. Letters: g the
gradient, m and v its averages, eta the learning rate, D trained numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from mpiprop.core import memory, schedules
from mpiprop.core.errors import UserError
from mpiprop.core.memory import blocks
from mpiprop.core.schedules import Schedule
from mpiprop.core.theta import Drift, Layout, State, Theta

Between = Literal["linear", "log"]


class Optimiser:
    """Learning-rate groups and schedules; `lr` is one schedule, or one per group or family of groups ("geometry" is that of
    "geometry.encoding" unless it has one of its own). Groups left out of `lr` do not train."""

    slots: tuple[str, ...] = ()

    def __init__(self, layout: Layout, lr: Schedule | dict[str, Schedule], between: Between) -> None:
        groups, self.value = layout.groups, schedules.at if between == "linear" else schedules.at_log
        families = {group: [name for name in (group, group.partition(".")[0]) if not isinstance(lr, dict) or name in lr]
                    for group in groups}
        self.lr = {group: lr[names[0]] if isinstance(lr, dict) else lr for group, names in families.items() if names}
        if isinstance(lr, dict) and (unknown := set(lr) - {name for names in families.values() for name in names}):
            raise UserError(f"lr: no group {sorted(unknown)[0]!r}; this system has {', '.join(groups)}")
        for group, schedule in self.lr.items():
            ends = [schedule] if isinstance(schedule, (int, float)) else [self.value(schedule, step) for step, _ in schedule]
            if min(ends) < 0:
                raise UserError(f"lr: the learning rate of {group} is below 0")

    def start(self, theta: Theta) -> State:
        """The state before the first step: theta_0 and zero slots [D]."""
        return State(0, theta, {name: memory.zeros(theta.layout.D, theta.flat.device) for name in self.slots})

    def __call__(self, drift: Drift, x: State) -> State:
        """The next state, which takes over the slots of x: they are changed in place."""
        theta = replace(x.theta, flat=memory.copy(x.theta.flat))
        for group, eta in self.rates(x.tau):
            span, count = theta.layout.turns(group, x.tau)[0]
            self.step(theta.flat[span], drift.grad[span], [x.slots[name][span] for name in self.slots], count, eta)
        return replace(x, tau=x.tau + 1, theta=theta)

    def predict(self, x: State, n: int) -> Iterator[Theta]:
        """Guesses for the n steps after x if the averages stayed as they are: a straight line along the momentum."""
        if x.tau == 0 or not n:  # there are no averages yet
            yield from [x.theta] * n
            return
        move, rates = memory.zeros(x.theta.layout.L, x.theta.flat.device), self.rates(x.tau)
        for group, eta in rates:
            for span, count in x.theta.layout.turns(group, x.tau):
                for block in blocks(span.start, span.stop, move.device) if count else ():
                    drift = self.drift_of([x.slots[name][block] for name in self.slots], count)
                    torch.mul(drift, -eta, out=move[block])
        guess = x.theta
        for tau in range(x.tau, x.tau + n):
            flat = torch.add(guess.flat, move, out=memory.empty(len(move), move.device))
            for span in (span for group, _ in rates for span, _ in guess.layout.turns(group, tau)[1:]):
                flat[span] = guess.flat[span]  # not its turn
            guess = replace(guess, flat=flat)
            yield guess

    def rates(self, tau: int) -> list[tuple[str, float]]:
        """The groups that step tau trains, each with its learning rate."""
        return [(group, eta) for group, schedule in self.lr.items() if (eta := self.value(schedule, tau)) != 0.0]

    def step(self, theta: Tensor, g: Tensor, slots: list[Tensor], count: int, eta: float) -> None:
        """Advance theta and slots of one group, or lane, in place: it has taken `count` steps before."""
        raise NotImplementedError

    def drift_of(self, slots: list[Tensor], count: int) -> Tensor:
        """The direction, against the sign, in which the next step would move theta by the averages of `count` steps alone."""
        raise NotImplementedError


def decays(shares: tuple[float, ...], name: str) -> tuple[float, ...]:
    """The shares that averages keep. Raises UserError, which names the key, for one outside [0, 1)."""
    if not all(0 <= share < 1 for share in shares):
        raise UserError(f"{name}: needs numbers of at least 0 and less than 1, got {', '.join(map(str, shares))}")
    return shares


def not_negative(**numbers: float) -> None:
    """Raises UserError for a number, by the name of its key, that is below 0."""
    for name, number in numbers.items():
        if number < 0:
            raise UserError(f"{name}: needs 0 or more, got {number:g}")


class Adam(Optimiser):
    """Adam (Kingma & Ba 2015), bias-corrected.

    lr: learning rate, a schedule or one per group
    between: how rates run between the knots of a schedule: straight, or their logarithms do ("log")
    betas: decay of the averages of g and of its square
    eps: added to the root of the second average
    weight_decay: added to the gradient as weight_decay * theta
    """

    slots = ("m", "v")
    kernel: Callable[..., None] = staticmethod(adam)

    def __init__(self, layout: Layout, *, lr: Schedule | dict[str, Schedule] = 1e-2,
                 betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-15, weight_decay: float = 0.0,
                 between: Between = "linear") -> None:
        super().__init__(layout, lr, between)
        not_negative(eps=eps, weight_decay=weight_decay)
        self.betas, self.eps, self.weight_decay = decays(betas, "betas"), eps, weight_decay

    def step(self, theta: Tensor, g: Tensor, slots: list[Tensor], count: int, eta: float) -> None:
        m, v = slots
        before = torch.tensor(float(count), device=theta.device)
        self.kernel([theta], [g], [m], [v], [], [before], foreach=False, fused=True, amsgrad=False, maximize=False,
                    beta1=self.betas[0], beta2=self.betas[1], lr=eta, weight_decay=self.weight_decay, eps=self.eps)

    def drift_of(self, slots: list[Tensor], count: int) -> Tensor:
        m, v = slots
        root = (v / (1 - self.betas[1] ** count)).sqrt_().add_(self.eps)
        return (m / (1 - self.betas[0] ** count)).div_(root)


class AdamW(Adam):
    """Adam with weight decay apart from the gradient (Loshchilov & Hutter 2019): theta shrinks by lr * weight_decay.

    lr: learning rate, a schedule or one per group
    between: how rates run between the knots of a schedule: straight, or their logarithms do ("log")
    betas: decay of the averages of g and of its square
    eps: added to the root of the second average
    weight_decay: share of theta lost per unit of learning rate
    """

    kernel = staticmethod(adamw)

    def __init__(self, layout: Layout, *, lr: Schedule | dict[str, Schedule] = 1e-2,
                 betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-15, weight_decay: float = 0.01,
                 between: Between = "linear") -> None:
        super().__init__(layout, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, between=between)


class SGD(Optimiser):
    """Stochastic gradient descent with heavy-ball momentum.

    lr: learning rate, a schedule or one per group
    between: how rates run between the knots of a schedule: straight, or their logarithms do ("log")
    momentum: decay of the sum of gradients; 0 is plain descent
    """

    slots = ("m",)

    def __init__(self, layout: Layout, *, lr: Schedule | dict[str, Schedule] = 1e-2, momentum: float = 0.0,
                 between: Between = "linear") -> None:
        super().__init__(layout, lr, between)
        (self.momentum,) = decays((momentum,), "momentum")

    def step(self, theta: Tensor, g: Tensor, slots: list[Tensor], count: int, eta: float) -> None:
        slots[0].mul_(self.momentum).add_(g)
        theta.add_(slots[0], alpha=-eta)

    def drift_of(self, slots: list[Tensor], count: int) -> Tensor:
        return slots[0].clone()


class Adan(Optimiser):
    """Adan (Xie et al. 2022, Algorithm 1, proximal weight decay): Adam with Nesterov's look-ahead through gradient differences.

    lr: learning rate, a schedule or one per group
    between: how rates run between the knots of a schedule: straight, or their logarithms do ("log")
    betas: decay of the averages of g, of its differences and of the square of their look-ahead
    eps: added to the root of the third average
    weight_decay: share of theta lost per unit of learning rate
    """

    slots = ("m", "d", "n", "previous")

    def __init__(self, layout: Layout, *, lr: Schedule | dict[str, Schedule] = 1e-3,
                 betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-8,
                 weight_decay: float = 0.0,
                 between: Between = "linear") -> None:
        super().__init__(layout, lr, between)
        not_negative(eps=eps, weight_decay=weight_decay)
        self.betas, self.eps, self.weight_decay = decays(betas, "betas"), eps, weight_decay

    def step(self, theta: Tensor, g: Tensor, slots: list[Tensor], count: int, eta: float) -> None:
        (m, d, n, previous), (b1, b2, b3) = slots, self.betas
        difference = g - previous if count else torch.zeros_like(g)
        m.lerp_(g, 1 - b1)
        d.lerp_(difference, 1 - b2)
        n.lerp_(difference.mul_(b2).add_(g).square_(), 1 - b3)
        previous.copy_(g)
        theta.sub_(self.drift_of(slots, count + 1), alpha=eta).div_(1 + eta * self.weight_decay)

    def drift_of(self, slots: list[Tensor], count: int) -> Tensor:
        (m, d, n, _), (b1, b2, b3) = slots, self.betas
        root = (n / (1 - b3 ** count)).sqrt_().add_(self.eps)
        return (m / (1 - b1 ** count)).add_(d, alpha=b2 / (1 - b2 ** count)).div_(root)
