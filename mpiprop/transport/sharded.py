"""One step's batch in parts: by the ranks of a group side by side, or in turn by one rank, with the same bits.

Each part is a share of the views; the sum of the parts' gradients, taken in their order, is the batch's. It differs from
that of the undivided batch by rounding alone, and not at all between one group and another.
"""

from time import perf_counter
from typing import TYPE_CHECKING

from mpiprop.core.errors import Lost
from mpiprop.core.theta import Drift, Theta
from mpiprop.transport.base import Unit

if TYPE_CHECKING:
    from mpiprop.transport.mpi import Request, Mpi


class Shared:
    """The unit of whoever answers for a whole batch, with the help of the workers of `fan` if there is one."""

    def __init__(self, unit: Unit, parts: int, fan: "Mpi | None" = None) -> None:
        self.unit, self.parts, self.fan = unit, parts, fan

    def __call__(self, theta: Theta, tau: int) -> Drift:
        """The batch's drift, in a buffer of its own; its losses are the sums of the parts'."""
        start = perf_counter()
        hands = 1 + (len(self.fan.workers) if self.fan else 0)
        given = {i: self.fan(theta, tau, i, self.parts) for i in range(self.parts) if i % hands}
        if given:
            self.fan.deliver()
        grad, scalars = None, {}
        for i in range(self.parts):
            drift = self._helped(given[i], theta, tau, i) if i in given else self.unit(theta, tau, i, self.parts)
            grad = drift.grad.clone() if grad is None else grad.add_(drift.grad)
            scalars |= {name: scalars.get(name, 0.0) + value for name, value in drift.scalars.items()}
        return Drift(grad, scalars, perf_counter() - start)

    def _helped(self, promise: "Request", theta: Theta, tau: int, i: int) -> Drift:
        try:
            return promise.result()
        except Lost:
            if self.fan.workers:
                raise
            return self.unit(theta, tau, i, self.parts)  # nobody is left to help
