"""What every transport offers, and what it needs: protocols, and the measurement of evaluation times."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Protocol

from mpiprop.core.theta import Drift, Theta
from mpiprop.picard.window import Promise


class Unit(Protocol):
    """Evaluates the drift of theta at step tau, or part number `part` of `parts` of it; the drifts of all parts add up.

    The result is a pure function of its arguments. Its tensors belong to the unit and are valid until the next call: a
    transport clones or sends them before. Raises UserError or RunError where the step cannot be evaluated.
    """

    def __call__(self, theta: Theta, tau: int, part: int = 0, parts: int = 1) -> Drift: ...


Batch = Callable[[Theta, int], Drift]
"""Evaluates the drift of a whole batch, with the rules of a Unit."""


class Transport(Protocol):
    """Evaluates steps on other ranks, or in this process: the parallel s of the algorithm.

    A new backend is one module with such a class and its serving loop, and one branch in `transport.connect`. Drifts are pure
    functions of (theta, tau), so a backend may evaluate a step on any rank, in any order, and again after a rank was lost.
    """

    busy: "Busy"  # to which the transport adds every evaluation that ended
    ranks: int  # of the job

    def __call__(self, theta: Theta, tau: int) -> Promise:
        """Hand out a step and return at once. Never raises: whatever goes wrong is raised by `result`.

        The transport keeps theta until the step is evaluated. `result` waits for the drift, which lives as long as the promise
        or the caller holds it. It raises Preempted once `asked` is true, Lost where no rank is left to evaluate, or the error
        that a rank reported.
        """

    def asked(self) -> bool:
        """Whether this rank or another one has been told to leave."""

    def close(self, code: int | None) -> bool:
        """End the service: every other rank gets `code`, the exit code of the run, or None where another stage follows.

        Returns whether ranks were lost, so that the job goes on without them.
        """


@dataclass(frozen=True)
class End:
    """What root tells the ranks that served it when it closes the transport."""

    code: int | None  # exit code of the run; None: another stage follows
    shrink: bool  # whether ranks were lost


class Busy:
    """How many evaluations ended, and the seconds during which at least one ran."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def add(self, seconds: float) -> None:
        """Count an evaluation that ended just now."""
        now = perf_counter()
        self.spans.append((now - seconds, now))

    def since(self, start: float) -> tuple[int, float]:
        """The number of evaluations counted since the last call, and their union in seconds as far as it is after `start`."""
        count, total, reached = len(self.spans), 0.0, start
        for begin, end in sorted(self.spans):
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        self.spans.clear()
        return count, total


def patiently(done: Callable[[], bool], until: float = float("inf")) -> bool:
    """Poll `done` until it holds, with growing naps of up to 1 ms; False if the clock passes `until` first.

    Ranks that wait leave the cores to those that work, and signal handlers run.
    """
    nap = 2e-5
    while not done():
        if perf_counter() > until:
            return False
        sleep(nap)
        nap = min(2 * nap, 1e-3)
    return True
