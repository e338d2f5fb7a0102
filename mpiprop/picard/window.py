"""The sliding window of generalized Picard iteration, and the functions that an iteration is made of.

The letters of the DreamPropeller paper (arXiv 2311.17082): theta_tau the parameters at step tau of T, k the iteration, p the
size of the window, s the computation unit (a gradient: expensive, evaluated in parallel), h_dagger the pseudo-inverse (one
optimiser step: cheap, in order), e the threshold, D the number of trained numbers.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from mpiprop.core.memory import blocks
from mpiprop.core.theta import Drift, State, Theta


class Promise(Protocol):
    """A drift whose evaluation has been dispatched."""

    def result(self) -> Drift: ...


ComputationUnit = Callable[[Theta, int], Promise]  # s(theta, tau), dispatched
PseudoInverse = Callable[[Drift, State], State]
"""h_dagger: the state after a step. It takes over the moments of the state that it is given and changes them in place: whoever
still needs that state passes a copy. Drifts and thetas are only read."""
Threshold = Callable[[float, int, Sequence[float], float | None], float]
"""Next e from e, k, the errors, and the mean square of the first step, None where that step changed the points."""
Predictor = Callable[[State, int], Iterable[Theta]]  # guesses for the n steps after a state
Distance = Callable[[Theta, Theta], float]  # mean square; 0 only between thetas that are the same to the last bit


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


def nothing() -> None:
    """What is done where nobody asks for more."""


def copies(x: State, n: int) -> Iterable[Theta]:
    """The paper's guess for new steps: the last iterate, n times."""
    return [x.theta] * n


def fit(window: Window, p: int, T: int, predict: Predictor = copies) -> Window:
    """The window with p guesses, fewer at the horizon T; those it has are kept."""
    p = min(p, T - window.x.tau)
    last = replace(window.x.read_as(window.guess[-1]), tau=window.x.tau + len(window.guess)) if window.guess else window.x
    return replace(window, guess=(*window.guess, *predict(last, max(0, p - len(window.guess))))[:p])


def distance(a: Theta, b: Theta, without: Collection[str] = ()) -> float:
    """|a - b|^2 / D over the D trained numbers (appendix C), `without` those of some learning-rate groups, b read on the points
    of a; 0 only where a and b agree to the last bit, groups left out, riding state and points too."""
    if a.flat is b.flat:
        return 0.0
    square, there = 0.0, b.read_as(a)
    spans = [span for group, span in a.layout.groups.items() if group not in without] if without else [slice(0, a.layout.D)]
    for block in (block for span in spans for block in blocks(span.start, span.stop, a.flat.device)):
        difference = a.flat[block] - there.flat[block]
        square += float(torch.dot(difference, difference))
    if square == 0.0 and not (there is b and torch.equal(a.flat, b.flat)):
        return 5e-324  # differences too small to square still are differences
    return square / sum(span.stop - span.start for span in spans)


def moved(before: Theta, after: Theta, distance: Distance = distance) -> float | None:
    """The mean square of one step; None where the step changed the points of a cloud."""
    return distance(after, before) if after.ancestry is before.ancestry else None
