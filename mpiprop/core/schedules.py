"""Schedules: numbers that depend on the step tau."""

from collections.abc import Sequence
from math import exp, log

from mpiprop.core.errors import UserError

Schedule = float | Sequence[Sequence[float]]
"""A number, or knots [[step, value], ...]: linear between them, constant outside."""


def at(schedule: Schedule, tau: float) -> float:
    """The schedule's value at step tau."""
    if not isinstance(schedule, Sequence):
        return float(schedule)
    knots = [(float(step), float(value)) for step, value in schedule]
    if tau <= knots[0][0]:
        return knots[0][1]
    for (s0, v0), (s1, v1) in zip(knots, knots[1:]):
        if tau < s1:
            return v0 + (v1 - v0) * (tau - s0) / (s1 - s0)
    return knots[-1][1]


def at_log(schedule: Schedule, tau: float) -> float:
    """The value at step tau of a schedule of numbers above 0 whose logarithm is linear between knots.

    Raises UserError where a number is not above 0.
    """
    if not isinstance(schedule, Sequence):
        return float(schedule)
    if any(value <= 0 for _, value in schedule):
        raise UserError(f"between: log needs values above 0 in the schedule {[list(knot) for knot in schedule]}")
    return exp(at([(step, log(value)) for step, value in schedule], tau))
