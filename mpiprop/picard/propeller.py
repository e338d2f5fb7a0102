"""Generalized Picard iteration over a sliding window (DreamPropeller, arXiv 2311.17082, Algorithms 1 and 2).

The paper's letters: theta_tau the parameters at step tau of T, k the iteration, p the window's size, s the computation
unit (a gradient: expensive, in parallel), h_dagger the pseudo-inverse (one optimiser step: cheap, in order), e the
threshold. Two liberties, both without effect at e = 0: a drift whose theta moved by no more than e since its evaluation is
kept instead of evaluated anew, and a step is handed to s as soon as its own iterate is rolled out, not when all are.

Where h_dagger changes the points of a cloud, iterates of one step may have different ones: `read_as` reads a drift, and
`distance` a theta, evaluated on some points for others, by their lineage (the paper's proj and unproj).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ..core.memory import blocks
from ..core.theta import Drift, State, Theta


class Promise(Protocol):
    """A drift on its way."""

    def result(self) -> Drift: ...


ComputationUnit = Callable[[Theta, int], Promise]  # s(theta, tau), begun
PseudoInverse = Callable[[Drift, State], State]  # h_dagger; may spend the slots of the state it is given, never its theta
Threshold = Callable[[float, int, Sequence[float], float | None], float]
"""Next e from e, k, the errors, and the square of one step, None where that step changed the points."""
Predictor = Callable[[State, int], Iterable[Theta]]  # guesses for the n steps after a state


@dataclass(frozen=True)
class Window:
    """What one iteration leaves to the next: everything there is to save."""

    x: State  # exact at step tau
    guess: tuple[Theta, ...]  # theta^k_{tau+1} .. theta^k_{tau+p}: where s is evaluated next
    e: float
    k: int = 0
    stride: int = 0  # steps accepted by the iteration that led here
    errors: tuple[float, ...] = ()  # mean squares |theta^{k+1} - theta^k|^2 / D of that iteration
    scalars: tuple[Mapping[str, float], ...] = ()  # losses of the steps accepted


def copies(x: State, n: int) -> Iterable[Theta]:
    """The paper's guess for new steps: the last iterate, n times."""
    return [x.theta] * n


def fit(window: Window, p: int, T: int, predict: Predictor = copies) -> Window:
    """The window with p guesses, fewer at the horizon T; those it has are kept."""
    p = min(p, T - window.x.tau)
    last = replace(window.x.read_as(window.guess[-1]), tau=window.x.tau + len(window.guess)) if window.guess else window.x
    return replace(window, guess=(*window.guess, *predict(last, max(0, p - len(window.guess))))[:p])


def propel(window: Window, s: ComputationUnit, h_dagger: PseudoInverse, *, p: int, T: int,
           threshold: Threshold, predict: Predictor = copies) -> Iterator[Window]:
    """Slide `window` until theta_T is reached, yielding it after every iteration (Algorithm 2)."""
    window = fit(window, p, T, predict)
    theta = (window.x.theta, *window.guess)
    drift = [s(theta[j], window.x.tau + j) for j in range(len(window.guess))]  # s(theta^k_{tau+j}), in parallel

    while window.x.tau < T:
        x, accepted, errors, scalars = window.x.copy(), None, [], []
        ahead: list[tuple[Theta, Promise | None]] = []  # theta^{k+1} and its drift, from the new tau on
        for j in range(p := len(window.guess)):
            arrived, drift[j] = drift[j].result(), None
            x = h_dagger(arrived.read_as(theta[j], x.theta), x)  # theta^{k+1}_{tau+j+1}
            errors.append(distance(x.theta, theta[j + 1]))
            if j == 0:
                step = distance(x.theta, window.x.theta) if x.theta.points is window.x.theta.points else None
            if accepted is None:
                scalars.append(arrived.scalars)
                if errors[j] <= window.e and j + 1 < p:
                    continue
                accepted, stride = x.copy() if j + 1 < p else x, j + 1  # exact up to here
            if errors[j] <= window.e and j + 1 < p:
                ahead.append((theta[j + 1], drift[j + 1]))
            else:
                ahead.append((x.theta, s(x.theta, x.tau) if x.tau < T else None))

        q = min(p, T - accepted.tau)
        for new in predict(x, max(0, q + 1 - len(ahead))):  # the window slides on
            ahead.append((new, s(new, accepted.tau + len(ahead)) if len(ahead) < q else None))

        theta, drift = map(list, zip(*ahead[:q + 1]))
        window = Window(accepted, tuple(theta[1:]), threshold(window.e, window.k, errors, step), window.k + 1,
                        stride, tuple(errors), tuple(scalars))
        yield window


def distance(a: Theta, b: Theta) -> float:
    """|a - b|^2 / D over the trained numbers (appendix C), b read on the points of a; 0 only where a and b agree to the last
    bit, riding state and points too."""
    if a.flat is b.flat:
        return 0.0
    square, D, there = 0.0, a.layout.D, b.read_as(a)
    for block in blocks(0, D, a.flat.device):
        difference = a.flat[block] - there.flat[block]
        square += float(torch.dot(difference, difference))
    if square == 0.0 and not (there is b and torch.equal(a.flat, b.flat)):
        return 5e-324  # differences too small to square still are differences
    return square / D
