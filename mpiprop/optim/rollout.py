"""h_dagger: one optimiser step, then the renewal of what is not trained by it (DreamPropeller, Eq. 9)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from mpiprop.core.theta import Drift, State, Theta
from mpiprop.optim.carried import Carried
from mpiprop.optim.optimisers import Optimiser


class Structure(Protocol):
    """What changes the points of a cloud, as a pure function of the state and the drift that led to it."""

    def start(self, x: State) -> State:
        """The state before the first step, with statistics of no points yet."""

    def measured(self, drift: Drift, x: State) -> State:
        """The state with the drift's measurements in its statistics."""

    def due(self, tau: int) -> bool:
        """Whether points change when tau steps are done."""

    def changed(self, x: State) -> State:
        """The state with the points that its statistics call for."""


class Rollout:
    """h-dagger: the optimiser's step; `carried` renews what the evaluation's sums tell of; then `structure` sees to the points
    of a cloud, or `refresh(theta, tau)` renews riding state, for the step that begins."""

    def __init__(self, optimiser: Optimiser, refresh: Callable[[Theta, int], Theta], structure: Structure | None = None,
                 carried: Callable[[Drift, State], State] = Carried({})) -> None:
        self.optimiser, self.refresh, self.structure, self.carried = optimiser, refresh, structure, carried

    def start(self, theta: Theta) -> State:
        """x_0, with the riding state of step 0."""
        x = self.optimiser.start(self.refresh(theta, 0))
        return self.structure.start(x) if self.structure else x

    def __call__(self, drift: Drift, x: State) -> State:
        x = self.carried(drift, self.optimiser(drift, x))
        if self.structure:
            x = self.structure.measured(drift, x)
            x = self.structure.changed(x) if self.structure.due(x.tau) else x
        return replace(x, theta=self.refresh(x.theta, x.tau))

    def predict(self, x: State, n: int) -> Iterator[Theta]:
        """The optimiser's guesses for the n steps after x; points change in them as statistics so far call for."""
        if not self.structure:
            yield from self.optimiser.predict(x, n)
            return
        last = x.tau + n
        while x.tau < last:
            end = next(filter(self.structure.due, range(x.tau + 1, last)), last)
            *between, theta = self.optimiser.predict(x, end - x.tau)
            yield from between
            x = replace(x, theta=theta, tau=end)
            x = self.structure.changed(x) if self.structure.due(end) else x
            yield x.theta
