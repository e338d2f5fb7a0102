"""Curves and bars as inline SVG, for a page that asks nothing of the network.

Letters: a series is a list of points (x, y).
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import ceil, exp, floor, inf, isfinite, log, log10

COLOURS = ("#2563a8", "#d9692a", "#3a8f5c", "#8a5bb0", "#b23a5e", "#6b7680")
W, H, LEFT, BOTTOM, TOP = 480, 216, 48, 26, 18  # viewBox and margins
LETTER = 7.0  # its width at most, as a rule
FINE, COARSE = 300, 50  # points of a curve at most: as it was, and as its trend

Points = Sequence[tuple[float, float]]


def curves(title: str, series: Mapping[str, Points], x_label: str, *, log_y: bool = False,
           marks: Mapping[str, float] | None = None, note: str = "") -> str:
    """A titled line chart as HTML, "" where there is nothing to draw; `marks` are labelled places on the x axis, in order,
    `note` is a sentence below the title.

    Points that are not finite, or not positive on a logarithmic axis, are left out; long curves are pale behind their
    trend.
    """
    usable = {name: [(x, y) for x, y in points if isfinite(y) and (y > 0 or not log_y)]
              for name, points in series.items()}
    drawn = {name: thinned(points, FINE, log_y) for name, points in usable.items() if points}
    if not drawn:
        return ""
    end = max(x for points in drawn.values() for x, _ in points)
    lowest, highest = (extreme(y for points in drawn.values() for _, y in points) for extreme in (min, max))
    if not log_y and 0 < lowest < highest / 2:
        lowest = 0.0
    x_ticks = [v for v in ticks(0, end) if v <= end]
    y_ticks = (decades if log_y else ticks)(lowest, highest)
    to_x, to_y = _axis(0, end, LEFT, W), _axis(y_ticks[0], y_ticks[-1], H - BOTTOM, TOP, log_y)

    parts = [f'<line class="grid" x1="{LEFT}" x2="{W}" y1="{to_y(v):.1f}" y2="{to_y(v):.1f}"/>'
             f'<text x="{LEFT - 8}" y="{to_y(v) + 4:.1f}" text-anchor="end">{number(v)}</text>' for v in y_ticks]
    for v in x_ticks:
        last = v == x_ticks[-1]
        anchor = "end" if last and to_x(v) > W - 40 else "middle"
        unit = f" {escape(x_label)}" if last else ""
        parts.append(f'<text x="{to_x(v):.1f}" y="{H - BOTTOM + 17}" text-anchor="{anchor}">{number(v)}{unit}</text>')
    for i, (label, x) in enumerate((marks or {}).items()):
        side, anchor = (5, "start") if to_x(x) + 5 + LETTER * len(label) <= W else (-5, "end")
        parts.append(f'<line class="grid" x1="{to_x(x):.1f}" x2="{to_x(x):.1f}" y1="0" y2="{H - BOTTOM}"/>'
                     f'<text x="{to_x(x) + side:.1f}" y="{10 + 12 * (i % 2)}" text-anchor="{anchor}">{escape(label)}</text>')
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(series)}
    for name, points in drawn.items():
        trend = thinned(usable[name], COARSE, log_y)
        for kind, line in ([("pale", points)] if len(points) > len(trend) else []) + [("curve", trend)]:
            path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line)
            parts.append(f'<polyline class="{kind}" stroke="{colours[name]}" points="{path}"/>')
    legend = "".join(f'<i style="--c:{colours[name]}">{escape(name)}</i>' for name in drawn) if len(series) > 1 else ""
    return _figure(title, legend, H, parts, note=note)


def shares(title: str, parts: Mapping[str, float], unit: str) -> str:
    """One bar divided into the parts, as HTML; "" where they are all zero."""
    total, x, bars, legend = sum(parts.values()), 0.0, [], []
    if total <= 0:
        return ""
    for (name, value), colour in zip(parts.items(), COLOURS):
        bars.append(f'<rect x="{x:.2f}" y="0" width="{W * value / total:.2f}" height="22" fill="{colour}">'
                    f'<title>{escape(name)} {value:.3g} {unit}</title></rect>')
        legend.append(f'<tr><td><h3><i style="--c:{colour};margin:0">{escape(name)}</i></h3></td>'
                      f'<td>{value:,.2f} {unit}</td><td>{value / total:.1%}</td></tr>')
        x += W * value / total
    return _figure(title, "", 30, bars, f"<table>{''.join(legend)}</table>")


def thinned(points: Points, n: int, geometric: bool = False) -> Points:
    """At most n points in the order of x: means of neighbours, geometric ones for a logarithmic axis."""
    if len(points) <= n:
        return points
    there, back = (log, exp) if geometric else (float, float)
    groups = [points[i * len(points) // n:(i + 1) * len(points) // n] for i in range(n)]
    return [(sum(x for x, _ in g) / len(g), back(sum(there(y) for _, y in g) / len(g))) for g in groups]


def ticks(lo: float, hi: float) -> list[float]:
    """Three to six round numbers whose range covers [lo, hi]."""
    span = hi - lo or abs(hi) or 1.0
    power = 10.0 ** floor(log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first = floor(lo / step + 1e-9)
    return [i * step for i in range(first, max(first + 1, ceil(hi / step - 1e-9)) + 1)]


def decades(lo: float, hi: float) -> list[float]:
    """Up to seven powers of ten whose range covers [lo, hi], for positive numbers."""
    first, last = floor(log10(lo) + 1e-9), ceil(log10(hi) - 1e-9)
    last = max(last, first + 1)
    step = ceil((last - first) / 6)
    return [10.0 ** (first + i * step) for i in range(ceil((last - first) / step) + 1)]


def number(value: float) -> str:
    """A tick's label: 0.25, 12k, 1e-5."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"


def _figure(title: str, legend: str, height: int, drawing: Sequence[str], below: str = "", note: str = "") -> str:
    note = f"<p class=note>{escape(note)}</p>" if note else ""
    return (f'<figure><h3>{escape(title)}{legend}</h3>{note}<svg viewBox="0 0 {W} {height}" role="img" '
            f'aria-label="{escape(title)}">{"".join(drawing)}</svg>{below}</figure>')


def _axis(lo: float, hi: float, start: float, stop: float, logarithmic: bool = False) -> Callable[[float], float]:
    """The map from values to places that puts `lo` at `start` and `hi` at `stop`."""
    scale = log10 if logarithmic else float
    lo, hi = scale(lo), scale(hi)
    return lambda value: start + (scale(value) - lo) / ((hi - lo) or inf) * (stop - start)
