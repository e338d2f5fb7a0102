"""How s(theta, tau) reaches whoever evaluates it: the in-process transport, and what every transport offers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

from mpiprop.core.errors import Preempted
from mpiprop.core.theta import Drift, Theta


class Unit(Protocol):
    """What evaluates: the drift of theta at tau, in a buffer that the next call may overwrite.

    Of several parts of the batch it is that part's share: the parts' drifts add up to the batch's.
    """

    def __call__(self, theta: Theta, tau: int, part: int = 0, parts: int = 1) -> Drift: ...


class Transport(Protocol):
    """A parallel s, and the time it was evaluating."""

    busy: "Busy"
    ranks: int  # of the job

    def __call__(self, theta: Theta, tau: int): ...
    def asked(self) -> bool: ...
    def close(self, code: int | None) -> bool: ...


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


@dataclass
class Deferred:
    """A drift evaluated in this process when it is first asked for."""

    transport: "Serial"
    theta: Theta
    tau: int
    drift: Drift | None = None

    def result(self) -> Drift:
        if self.transport.asked():
            raise Preempted
        if self.drift is None:
            drift = self.transport.unit(self.theta, self.tau)
            self.transport.busy.add(drift.seconds)
            self.drift = replace(drift, grad=drift.grad.clone())
        return self.drift


class Serial:
    """Everything in one process, one evaluation after the other; the bits that every other transport must give."""

    ranks = 1

    def __init__(self, unit: Unit, stopped: Callable[[], bool]) -> None:
        self.unit, self.stopped, self.busy = unit, stopped, Busy()

    def __call__(self, theta: Theta, tau: int) -> Deferred:
        return Deferred(self, theta, tau)

    def asked(self) -> bool:
        """Whether this process has been told to leave."""
        return self.stopped()

    def close(self, code: int | None) -> bool:
        """Nobody else is to be sent home, nobody is missing."""
        return False
