"""What a step leaves to the next beside parameters and moments: states of guidances, and running averages for variances."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from mpiprop.core import variance
from mpiprop.core.theta import Drift, State

Renewal = Callable[[Tensor, Tensor], Tensor]  # the next state, from the present one and what the evaluation measured


class Carried:
    """Renews what is carried from step to step by the sums of each drift.

    renewals: of states that ride in theta, by the names of their entries
    """

    def __init__(self, renewals: Mapping[str, Renewal]) -> None:
        self.renewals = renewals

    def __call__(self, drift: Drift, x: State) -> State:
        """The state after `drift`. Riding numbers change in place: theta must be this state's alone."""
        entries = {entry.name: entry for entry in x.theta.layout.entries if entry.name in self.renewals}
        averages = dict(x.averages)
        for name, sums in drift.sums.items():
            if (entry := entries.get(name)) is not None:
                values = x.theta.flat[entry.span].view(entry.shape)
                values.copy_(self.renewals[name](values, sums.to(values.device)))
            else:
                moments = sums if len(sums) == variance.LEVELS else variance.moments(sums)  # a sketch comes as it is
                averages[name] = variance.averaged(averages.get(name), moments)
        return replace(x, averages=averages)
