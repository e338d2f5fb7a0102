"""Curves for the page, which uPlot draws there.

Letters: a series is a list of points (x, y).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Any

FINE, COARSE = 300, 50  # points of a curve at most: as it was, and as its trend

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A titled line chart; `data` is what charts.js reads."""

    title: str
    note: str  # a sentence below the title
    data: Mapping[str, Any]


def curves(title: str, series: Mapping[str, Points], unit: str, *, log_y: bool = False,
           marks: Mapping[str, float] | None = None, note: str = "") -> list[Chart]:
    """One chart of the series over x in `unit`; none where there is nothing to draw. `marks` are named places on the x axis.

    Points that are not finite, or not positive on a logarithmic axis, are left out; of a long series its trend is also drawn.
    """
    usable = {name: [(x, y) for x, y in points if isfinite(y) and (y > 0 or not log_y)]
              for name, points in series.items()}
    drawn = [{"name": name, "points": _columns(thinned(points, FINE, log_y)),
              "trend": _columns(thinned(points, COARSE, log_y)) if len(points) > COARSE else None}
             for name, points in usable.items() if points]
    return [Chart(title, note, {"unit": unit, "log": log_y, "marks": dict(marks or {}), "series": drawn})] if drawn else []


def thinned(points: Points, n: int, geometric: bool = False) -> Points:
    """At most n points in the order of x: means of neighbours, geometric ones for a logarithmic axis."""
    if len(points) <= n:
        return points
    there, back = (log, exp) if geometric else (float, float)
    groups = [points[i * len(points) // n:(i + 1) * len(points) // n] for i in range(n)]
    return [(sum(x for x, _ in g) / len(g), back(sum(there(y) for _, y in g) / len(g))) for g in groups]


def _columns(points: Points) -> list[list[float]]:
    """The x and the y of points, to six digits."""
    return [[float(f"{value:.6g}") for value in column] for column in zip(*points)]
