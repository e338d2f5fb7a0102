"""Everything in one process, one evaluation after the other: the bits that every other transport must give."""

from collections.abc import Callable

from mpiprop.core.errors import Preempted
from mpiprop.core.theta import Drift, Theta
from mpiprop.transport.base import Batch, Busy


class Serial:
    """Evaluates each step in this process when its drift is asked for."""

    ranks = 1

    def __init__(self, unit: Batch, stopped: Callable[[], bool]) -> None:
        self.unit, self.stopped, self.busy = unit, stopped, Busy()

    def __call__(self, theta: Theta, tau: int) -> "Deferred":
        return Deferred(self, theta, tau)

    def asked(self) -> bool:
        """Whether this process has been told to leave."""
        return self.stopped()

    def close(self, code: int | None) -> bool:
        """No workers to stop."""
        return False


class Deferred:
    """A step that is evaluated when its drift is first asked for."""

    def __init__(self, transport: Serial, theta: Theta, tau: int) -> None:
        self.transport, self.theta, self.tau = transport, theta, tau
        self.drift: Drift | None = None

    def result(self) -> Drift:
        """The drift. Raises Preempted if the process has been told to leave."""
        if self.transport.asked():
            raise Preempted
        if self.drift is None:
            self.drift = self.transport.unit(self.theta, self.tau).clone()
            self.transport.busy.add(self.drift.seconds)
        return self.drift
