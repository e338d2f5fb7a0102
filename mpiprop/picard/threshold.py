"""Rules for the threshold e up to which a drift counts as evaluated at the right point.

Errors are mean squares per trained number. All rules return the next e and keep nothing themselves.
"""

from collections.abc import Callable, Sequence
from statistics import fmean, median

from mpiprop.picard.window import Threshold


def fixed(e: float, k: int, errors: Sequence[float], step: float | None) -> float:
    """e itself. With e = 0 the iteration gives the bits of the sequential method."""
    return e


def middle(errors: Sequence[float]) -> float:
    """The error of the middle slot: what the authors' released code calls the median."""
    return errors[len(errors) // 2]


AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {"median": median, "mean": fmean, "middle": middle}


def adaptive(gamma: float, aggregate: str) -> Threshold:
    """e <- gamma e + (1 - gamma) M(errors), the rule of Algorithm 2."""
    M = AGGREGATES[aggregate]
    return lambda e, k, errors, step: gamma * e + (1 - gamma) * M(errors)


def relative(gamma: float, factor: float) -> Threshold:
    """e = factor times the (averaged) mean square of one optimiser step: one number for every representation, batch and
    learning rate, where absolute thresholds need tuning for each. A step that changes the points is none of the optimiser's."""
    def rule(e: float, k: int, errors: Sequence[float], step: float | None) -> float:
        if step is None:
            return e
        return gamma * e + (1 - gamma) * factor * step if k else factor * step
    return rule
