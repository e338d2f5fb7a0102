"""Signed-distance solids and the operations that join them: what the objects of the corpus are made of.

World units and axes as everywhere in mpiprop: z up, the object's front towards +x, its left +y. The distances are exact
or lower bounds, which is what sphere tracing needs (Hart, The Visual Computer 12, 1996); those of ellipsoids and of
waves are approximations of first order. Shapes: points are [3, N], so that a coordinate is contiguous; distances [N].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Point = tuple[float, float, float]
Sdf = Callable[[Tensor], Tensor]  # points [3, N] -> signed distance [N], negative inside
Part = tuple[Sdf, "Point | float"]  # a solid and its colour; a number scales the colour that the caption names

UP, DOWN, FRONT, BACK = (0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0)


def column(point: Point, like: Tensor) -> Tensor:
    """Returns the point as [3, 1] of the kind of `like`."""
    return torch.tensor(point, dtype=like.dtype, device=like.device)[:, None]


def length(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt()


# ---- solids ----

def ball(centre: Point, radius: float) -> Sdf:
    x, y, z = centre
    return lambda p: length(p[0] - x, p[1] - y, p[2] - z) - radius


def ellipsoid(centre: Point, radii: Point) -> Sdf:
    (x, y, z), (a, b, c) = centre, radii

    def distance(p: Tensor) -> Tensor:
        u, v, w = (p[0] - x) / a, (p[1] - y) / b, (p[2] - z) / c
        k = length(u, v, w)
        return k * (k - 1) / length(u / a, v / b, w / c).clamp_min(1e-6)

    return distance


def box(centre: Point, half: Point, rounding: float = 0.02) -> Sdf:
    """Returns a box of half extents `half`, its edges rounded off."""
    def distance(p: Tensor) -> Tensor:
        u, v, w = ((p[i] - centre[i]).abs() - (half[i] - rounding) for i in range(3))
        outside = length(u.clamp_min(0), v.clamp_min(0), w.clamp_min(0))
        return outside + torch.maximum(torch.maximum(u, v), w).clamp_max(0) - rounding

    return distance


def frustum(start: Point, end: Point, radius: float, end_radius: float | None = None) -> Sdf:
    """Returns a cylinder from `start` to `end`, or a cone where `end_radius` differs."""
    axis = [e - s for s, e in zip(start, end)]
    high = math.hypot(*axis)
    u, slope = [a / high for a in axis], 0.0 if end_radius is None else (end_radius - radius) / high
    cosine = 1 / math.hypot(1, slope)

    def distance(p: Tensor) -> Tensor:
        x, y, z = (p[i] - start[i] for i in range(3))
        s = x * u[0] + y * u[1] + z * u[2]
        radial = (x * x + y * y + z * z - s * s).clamp_min(0).sqrt()
        return torch.maximum((radial - radius - slope * s) * cosine, (s - high / 2).abs() - high / 2)

    return distance


def capsule(start: Point, end: Point, radius: float) -> Sdf:
    axis = [e - s for s, e in zip(start, end)]
    square = sum(a * a for a in axis)

    def distance(p: Tensor) -> Tensor:
        x, y, z = (p[i] - start[i] for i in range(3))
        s = ((x * axis[0] + y * axis[1] + z * axis[2]) / square).clamp(0, 1)
        return length(x - axis[0] * s, y - axis[1] * s, z - axis[2] * s) - radius

    return distance


def tube(points: Sequence[Point], radius: float) -> Sdf:
    """Returns capsules of one radius from point to point."""
    return join(*(capsule(start, end, radius) for start, end in zip(points, points[1:])))


def torus(centre: Point, ring: float, thickness: float, axis: int = 2) -> Sdf:
    i, j = [k for k in range(3) if k != axis]

    def distance(p: Tensor) -> Tensor:
        flat = torch.hypot(p[i] - centre[i], p[j] - centre[j]) - ring
        return torch.hypot(flat, p[axis] - centre[axis]) - thickness

    return distance


def plane(normal: Point, offset: float) -> Sdf:
    """Returns the half space normal . p <= offset |normal|."""
    a, b, c = (n / math.hypot(*normal) for n in normal)
    return lambda p: a * p[0] + b * p[1] + c * p[2] - offset


def prism(corners: Sequence[tuple[float, float]], half: float, at: float = 0.0, axis: int = 1) -> Sdf:
    """Returns a convex polygon, its corners counter-clockwise in the two other coordinates, of thickness 2 `half`."""
    i, j = [k for k in range(3) if k != axis]
    sides = []
    for (u, v), (s, t) in zip(corners, [*corners[1:], corners[0]]):
        long = math.hypot(s - u, t - v)
        sides.append(((t - v) / long, (u - s) / long, ((t - v) * u + (u - s) * v) / long))

    def distance(p: Tensor) -> Tensor:
        edges = [a * p[i] + b * p[j] - c for a, b, c in sides]
        return functools.reduce(torch.maximum, [*edges, (p[axis] - at).abs() - half])

    return distance


# ---- operations ----

def join(*solids: Sdf) -> Sdf:
    return lambda p: functools.reduce(torch.minimum, [solid(p) for solid in solids])


def cut(*solids: Sdf) -> Sdf:
    """Returns what the solids have in common."""
    return lambda p: functools.reduce(torch.maximum, [solid(p) for solid in solids])


def hollow(solid: Sdf, *holes: Sdf) -> Sdf:
    return lambda p: functools.reduce(torch.maximum, [-hole(p) for hole in holes], solid(p))


def grown(solid: Sdf, by: float) -> Sdf:
    return lambda p: solid(p) - by


def blend(radius: float, *solids: Sdf) -> Sdf:
    """Returns the union of the solids with seams filled over about `radius`."""
    def smooth(a: Tensor, b: Tensor) -> Tensor:
        near = (radius - (a - b).abs()).clamp_min(0)
        return torch.minimum(a, b) - near * near / (4 * radius)

    return lambda p: functools.reduce(smooth, [solid(p) for solid in solids])


def moved(solid: Sdf, by: Point, scale: float = 1.0) -> Sdf:
    """Returns the solid scaled about the origin, then shifted."""
    return lambda p: solid((p - column(by, p)) / scale) * scale


def turned(solid: Sdf, axis: int, degrees: float) -> Sdf:
    """Returns the solid turned about an axis through the origin, counter-clockwise seen from its tip."""
    c, s, i, j = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), (axis + 1) % 3, (axis + 2) % 3

    def distance(p: Tensor) -> Tensor:
        q = p.clone()
        q[i], q[j] = c * p[i] + s * p[j], c * p[j] - s * p[i]
        return solid(q)

    return distance


def mirrored(solid: Sdf, *axes: int) -> Sdf:
    """Returns the solid and its mirror image in the planes x_axis = 0; it must lie on the positive side."""
    def distance(p: Tensor) -> Tensor:
        p = p.clone()
        for axis in axes:
            p[axis] = p[axis].abs()
        return solid(p)

    return distance


def around(solid: Sdf, count: int, phase: float = 0.0, axis: int = 2) -> Sdf:
    """Returns `count` copies around an axis: the angle folds onto one sector, so that they cost a single one.

    The solid must lie about the next axis (x for z), inside its sector; `phase` counts in sectors.
    """
    sector, i, j = 2 * math.pi / count, (axis + 1) % 3, (axis + 2) % 3

    def distance(p: Tensor) -> Tensor:
        q, flat = p.clone(), torch.hypot(p[i], p[j])
        angle = sector * ((torch.atan2(p[j], p[i]) / sector - phase + 0.5) % 1 - 0.5)
        q[i], q[j] = flat * angle.cos(), flat * angle.sin()
        return solid(q)

    return distance


def rowed(solid: Sdf, axis: int, spacing: float, count: int) -> Sdf:
    """Returns `count` copies in a row along an axis, centred where the solid is; it must be smaller than `spacing`."""
    first = -(count - 1) / 2

    def distance(p: Tensor) -> Tensor:
        q = p.clone()
        q[axis] = p[axis] - spacing * ((p[axis] / spacing - first).round().clamp(0, count - 1) + first)
        return solid(q)

    return distance


def waved(level: float, height: float, count: int) -> Sdf:
    """Returns the half space z >= level + height cos(count azimuth), as a bound."""
    return lambda p: 0.6 * (level + height * (count * torch.atan2(p[1], p[0])).cos() - p[2])


def sectors(count: int, phase: float = 0.0) -> Sdf:
    """Returns `count` wedges about the z axis that cover every other of 2 count sectors, as a bound."""
    def distance(p: Tensor) -> Tensor:
        angle = count * torch.atan2(p[1], p[0]) + math.pi * phase
        return -torch.hypot(p[0], p[1]) * angle.cos() / count

    return distance
