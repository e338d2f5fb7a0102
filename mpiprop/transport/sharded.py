"""One step's batch in shards: by the ranks of a group side by side, or in turn by one rank, with the same bits.

Each shard is a share of the views; the sum of the shards' gradients, taken in their order, is the batch's. It differs from
that of the undivided batch by rounding alone, and not at all between one group and another.
"""

from collections.abc import Sized
from time import perf_counter
from typing import Protocol

from mpiprop.core.errors import Lost
from mpiprop.core.theta import Drift, Theta
from mpiprop.picard.window import Promise
from mpiprop.transport.base import Unit


class Helpers(Protocol):
    """Other ranks that evaluate parts of a step."""

    @property
    def workers(self) -> Sized:
        """The helpers that are left."""

    def __call__(self, theta: Theta, tau: int, *part: int) -> Promise:
        """Hands out part `part` of `parts` of a step, see Unit."""

    def deliver(self) -> None:
        """Wait until what was handed out has been sent."""


class Sharded:
    """Evaluates a batch in shards and sums them, with the help of other ranks if there are any."""

    def __init__(self, unit: Unit, shards: int, helpers: Helpers | None = None) -> None:
        self.unit, self.shards, self.helpers = unit, shards, helpers

    def __call__(self, theta: Theta, tau: int) -> Drift:
        """The drift of the whole batch, in memory of its own."""
        start = perf_counter()
        ranks = 1 + (len(self.helpers.workers) if self.helpers else 0)
        given: dict[int, Promise] = {}
        if self.helpers:
            given = {i: self.helpers(theta, tau, i, self.shards) for i in range(self.shards) if i % ranks}
            self.helpers.deliver()
        total = self._shard(0, theta, tau, given).clone()
        scalars, sums = dict(total.scalars), dict(total.sums)
        for i in range(1, self.shards):
            drift = self._shard(i, theta, tau, given)
            total.grad.add_(drift.grad)
            for name, values in drift.statistics.items():
                total.statistics[name].add_(values)
            scalars |= {name: scalars.get(name, 0.0) + value for name, value in drift.scalars.items()}
            sums |= {name: sums[name] + values if name in sums else values for name, values in drift.sums.items()}
        return Drift(total.grad, scalars, perf_counter() - start, total.statistics, sums)

    def _shard(self, i: int, theta: Theta, tau: int, given: dict[int, Promise]) -> Drift:
        """Shard i, from the helper that it was given to, or evaluated here."""
        if i in given:
            try:
                return given.pop(i).result()
            except Lost:
                if self.helpers and self.helpers.workers:
                    raise
        return self.unit(theta, tau, i, self.shards)  # mine, or nobody is left to help
