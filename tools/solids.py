"""The objects of the corpus: a few signed-distance solids each, with a colour per part.

World units and axes as everywhere in mpiprop: z up, the object's front towards +x, its left +y; every object lies
inside a ball of RADIUS about the origin. The distances are exact or lower bounds, which is what sphere tracing needs
(Hart, The Visual Computer 12, 1996). Shapes: points are [3, N], so that a coordinate is contiguous; distances are [N].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Point = tuple[float, float, float]
Sdf = Callable[[Tensor], Tensor]  # points [3, N] -> signed distance [N], negative inside
Part = tuple[Sdf, Point | None]  # a solid and its colour; None is the colour that the caption names

RADIUS = 0.62
UP, DOWN = (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)

WHITE, CREAM, GREY, DARK, BLACK = (0.96,) * 3, (0.95, 0.88, 0.72), (0.55, 0.57, 0.60), (0.24, 0.22, 0.24), (0.07,) * 3
BROWN, CARROT, BRICK = (0.40, 0.22, 0.10), (1.0, 0.45, 0.0), (0.8, 0.0, 0.0)
GLASS, LIGHT = (0.62, 0.85, 0.97), (1.0, 0.92, 0.35)


def _column(point: Point) -> Tensor:
    return torch.tensor(point, dtype=torch.float32)[:, None]


def _length(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt()


def ball(centre: Point, radius: float) -> Sdf:
    x, y, z = centre
    return lambda p: _length(p[0] - x, p[1] - y, p[2] - z) - radius


def ellipsoid(centre: Point, radii: Point) -> Sdf:
    c, r = _column(centre), _column(radii)

    def distance(p: Tensor) -> Tensor:
        q = (p - c) / r
        k = _length(*q)
        return k * (k - 1) / _length(*(q / r)).clamp_min(1e-6)

    return distance


def box(centre: Point, half: Point, rounding: float = 0.02) -> Sdf:
    c, h = _column(centre), _column(half) - rounding

    def distance(p: Tensor) -> Tensor:
        q = (p - c).abs() - h
        return _length(*q.clamp_min(0)) + torch.maximum(torch.maximum(q[0], q[1]), q[2]).clamp_max(0) - rounding

    return distance


def frustum(start: Point, end: Point, radius: float, end_radius: float | None = None) -> Sdf:
    """Returns the distance to a cylinder from `start` to `end`, or to a cone where `end_radius` differs."""
    a, axis = _column(start), _column(end) - _column(start)
    slope = 0.0 if end_radius is None else end_radius - radius
    length = float(axis.norm())
    u, cosine = axis / length, length / math.hypot(length, slope)

    def distance(p: Tensor) -> Tensor:
        q = p - a
        s = u[:, 0] @ q
        radial = _length(*(q - u * s))
        return torch.maximum((radial - radius - slope / length * s) * cosine, (s - length / 2).abs() - length / 2)

    return distance


def capsule(start: Point, end: Point, radius: float) -> Sdf:
    a, axis = _column(start), _column(end) - _column(start)

    def distance(p: Tensor) -> Tensor:
        s = (axis[:, 0] @ (p - a)) / (axis * axis).sum()
        return _length(*(p - a - axis * s.clamp(0, 1))) - radius

    return distance


def torus(centre: Point, ring: float, tube: float, axis: int = 2) -> Sdf:
    c, (i, j) = _column(centre), [k for k in range(3) if k != axis]

    def distance(p: Tensor) -> Tensor:
        q = p - c
        return torch.hypot(torch.hypot(q[i], q[j]) - ring, q[axis]) - tube

    return distance


def plane(normal: Point, offset: float) -> Sdf:
    """Returns the distance to the half space normal . p <= offset |normal|."""
    n = _column(normal) / math.hypot(*normal)
    return lambda p: n[:, 0] @ p - offset


def cut(*solids: Sdf) -> Sdf:
    return lambda p: functools.reduce(torch.maximum, [solid(p) for solid in solids])


def hollow(solid: Sdf, hole: Sdf) -> Sdf:
    return lambda p: torch.maximum(solid(p), -hole(p))


def mirrored(solid: Sdf, *axes: int) -> Sdf:
    """Returns the solid and its mirror image in the planes x_axis = 0; it must lie on the positive side."""
    def distance(p: Tensor) -> Tensor:
        p = p.clone()
        p[list(axes)] = p[list(axes)].abs()
        return solid(p)

    return distance


def _gable(offset: float) -> Sdf:
    return cut(plane((0, 0.9, 1), offset), plane((0, -0.9, 1), offset))


def _ring(count: int, radius: float, z: float, size: float, phase: float = 0.0) -> Part:
    """Returns `count` white dots about the z axis: the angle folds onto one sector, so that they cost a single ball."""
    sector = 2 * math.pi / count

    def distance(p: Tensor) -> Tensor:
        flat = torch.hypot(p[0], p[1])
        angle = sector * ((torch.atan2(p[1], p[0]) / sector - phase + 0.5) % 1 - 0.5)
        return _length(flat * angle.cos() - radius, flat * angle.sin(), p[2] - z) - size

    return distance, WHITE


def _objects() -> dict[str, list[Part]]:
    return {
        "mushroom": [
            (cut(ellipsoid((0, 0, 0.02), (0.5, 0.5, 0.46)), plane(DOWN, -0.03)), None),
            (frustum((0, 0, 0.0), (0, 0, 0.04), 0.45, 0.49), CREAM),
            (frustum((0, 0, -0.5), (0, 0, 0.04), 0.19, 0.14), CREAM),
            (ball((0, 0, 0.44), 0.09), WHITE),
            _ring(5, 0.36, 0.26, 0.085),
        ],
        "chair": [
            (box((0.02, 0, -0.06), (0.29, 0.27, 0.045)), None),
            (box((-0.25, 0, 0.2), (0.045, 0.27, 0.3)), None),
            (box((0.04, 0, 0.0), (0.22, 0.21, 0.04), 0.03), CREAM),
            (box((-0.21, 0, 0.26), (0.03, 0.19, 0.17), 0.02), CREAM),
            (mirrored(box((0.26, 0.23, -0.29), (0.035, 0.035, 0.22)), 1), None),
            (mirrored(box((-0.25, 0.23, -0.29), (0.035, 0.035, 0.22)), 1), None),
        ],
        "rocket": [
            (cut(ellipsoid((0, 0, -0.08), (0.22, 0.22, 0.62)), plane(DOWN, 0.36)), None),
            (cut(ellipsoid((0, 0, -0.08), (0.225, 0.225, 0.625)), plane(DOWN, -0.32)), WHITE),
            (frustum((0, 0, -0.46), (0, 0, -0.34), 0.15, 0.11), DARK),
            (mirrored(cut(box((0.24, 0, -0.34), (0.14, 0.03, 0.18), 0.01), plane((1, 0, 1), 0.03)), 0), GREY),
            (mirrored(cut(box((0, 0.24, -0.34), (0.03, 0.14, 0.18), 0.01), plane((0, 1, 1), 0.03)), 1), GREY),
            (ball((0.15, 0, 0.1), 0.1), GLASS),
            (torus((0.19, 0, 0.1), 0.095, 0.026, 0), DARK),
        ],
        "snowman": [
            (ball((0, 0, -0.29), 0.27), None),
            (ball((0, 0, 0.06), 0.2), None),
            (ball((0, 0, 0.32), 0.15), None),
            (frustum((0.12, 0, 0.32), (0.33, 0, 0.3), 0.05, 0.005), CARROT),
            (mirrored(ball((0.125, 0.065, 0.38), 0.032), 1), BLACK),
            (ball((0.2, 0, 0.08), 0.034), BLACK),
            (ball((0.17, 0, -0.04), 0.034), BLACK),
            (ball((0.26, 0, -0.21), 0.034), BLACK),
            (torus((0, 0, 0.19), 0.125, 0.045), WHITE),
            (mirrored(capsule((0, 0.17, 0.08), (0.05, 0.42, 0.22), 0.026), 1), BROWN),
            (frustum((0, 0, 0.42), (0, 0, 0.46), 0.19), BLACK),
            (frustum((0, 0, 0.44), (0, 0, 0.6), 0.12), BLACK),
        ],
        "car": [
            (box((0, 0, -0.07), (0.54, 0.24, 0.11), 0.05), None),
            (cut(box((-0.15, 0, 0.12), (0.33, 0.2, 0.14), 0.03), plane((1, 0, 0.75), 0.17)), None),
            (cut(box((-0.13, 0, 0.11), (0.33, 0.165, 0.08), 0.01), plane((1, 0, 0.75), 0.18)), GLASS),
            (mirrored(box((-0.24, 0.1, 0.11), (0.13, 0.106, 0.075), 0.01), 1), GLASS),
            (mirrored(box((0.0, 0.1, 0.1), (0.07, 0.106, 0.065), 0.01), 1), GLASS),
            (box((-0.47, 0, 0.12), (0.02, 0.14, 0.07), 0.01), DARK),
            (mirrored(frustum((0.32, 0.15, -0.17), (0.32, 0.27, -0.17), 0.115), 1), BLACK),
            (mirrored(frustum((-0.32, 0.15, -0.17), (-0.32, 0.27, -0.17), 0.115), 1), BLACK),
            (mirrored(ball((0.5, 0.16, -0.05), 0.065), 1), LIGHT),
            (box((0.53, 0, -0.09), (0.025, 0.08, 0.04)), DARK),
            (mirrored(box((-0.53, 0.17, -0.04), (0.025, 0.06, 0.05)), 1), BRICK),
            (box((-0.535, 0, -0.1), (0.02, 0.08, 0.035)), WHITE),
        ],
        "house": [
            (box((0, 0, -0.17), (0.3, 0.34, 0.25), 0.01), None),
            (cut(box((0, 0, -0.05), (0.3, 0.34, 0.44), 0.01), _gable(0.28)), None),
            (hollow(cut(box((0, 0, 0.2), (0.36, 0.44, 0.4), 0.01), _gable(0.35)), _gable(0.28)), DARK),
            (box((-0.14, 0.18, 0.36), (0.06, 0.06, 0.14), 0.01), BRICK),
            (box((0.3, 0, -0.26), (0.025, 0.085, 0.16), 0.01), BROWN),
            (ball((0.33, 0.05, -0.26), 0.022), LIGHT),
            (mirrored(box((0.3, 0.215, -0.13), (0.02, 0.075, 0.085), 0.01), 1), GLASS),
            (mirrored(box((0, 0.34, -0.12), (0.13, 0.02, 0.09), 0.01), 1), GLASS),
            (box((0.3, 0, 0.13), (0.02, 0.06, 0.06), 0.01), GLASS),
        ],
        "table": [
            (box((0, 0, 0.16), (0.33, 0.44, 0.045)), None),
            (box((0.03, 0, 0.06), (0.26, 0.25, 0.07), 0.01), None),
            (mirrored(box((0.26, 0.37, -0.16), (0.04, 0.04, 0.3)), 0, 1), BROWN),
            (box((0.29, 0, 0.055), (0.02, 0.19, 0.045), 0.01), CREAM),
            (ball((0.32, 0, 0.055), 0.03), BLACK),
        ],
        "tree": [
            (frustum((0, 0, -0.56), (0, 0, 0.0), 0.1, 0.07), BROWN),
            (ball((0, 0, 0.28), 0.27), None),
            (ball((0.17, 0.1, 0.08), 0.24), None),
            (ball((-0.17, 0.12, 0.08), 0.24), None),
            (ball((0.0, -0.2, 0.08), 0.24), None),
        ],
        "donut": [
            (torus((0, 0, -0.03), 0.32, 0.18), CREAM),
            (cut(torus((0, 0, -0.01), 0.32, 0.195), plane(DOWN, 0.06)), None),
            _ring(7, 0.32, 0.175, 0.032),
            _ring(9, 0.44, 0.13, 0.03, 0.5),
            _ring(5, 0.2, 0.13, 0.03, 0.3),
        ],
        "lamp": [
            (frustum((0, 0, 0.05), (0, 0, 0.52), 0.38, 0.19), None),
            (frustum((0, 0, 0.03), (0, 0, 0.06), 0.34), LIGHT),
            (frustum((0, 0, -0.48), (0, 0, 0.1), 0.04), GREY),
            (frustum((0, 0, -0.52), (0, 0, -0.44), 0.26, 0.22), None),
        ],
        "mug": [
            (hollow(frustum((0, 0, -0.36), (0, 0, 0.38), 0.32), frustum((0, 0, -0.3), (0, 0, 0.5), 0.27)), None),
            (frustum((0, 0, -0.34), (0, 0, 0.26), 0.28), BROWN),
            (torus((0, 0.34, 0.02), 0.16, 0.05, 0), None),
            (mirrored(ball((0.31, 0.055, 0.06), 0.075), 1), WHITE),
            (ball((0.31, 0, -0.01), 0.075), WHITE),
        ],
        "airplane": [
            (capsule((-0.42, 0, 0.02), (0.4, 0, 0), 0.125), None),
            (ellipsoid((0.02, 0, -0.03), (0.13, 0.56, 0.035)), None),
            (ellipsoid((-0.46, 0, 0.04), (0.085, 0.24, 0.03)), None),
            (cut(box((-0.44, 0, 0.2), (0.11, 0.025, 0.2), 0.01), plane((1, 0, 0.7), -0.22)), None),
            (ellipsoid((0.3, 0, 0.09), (0.14, 0.085, 0.085)), GLASS),
            (ball((0.53, 0, 0), 0.045), DARK),
            (ellipsoid((0.53, 0, 0), (0.015, 0.04, 0.2)), DARK),
            (ellipsoid((0.53, 0, 0), (0.015, 0.2, 0.04)), DARK),
            (mirrored(ball((0.05, 0.45, -0.02), 0.06), 1), WHITE),
        ],
        "duck": [
            (ellipsoid((-0.05, 0, -0.18), (0.42, 0.3, 0.25)), None),
            (ball((0.2, 0, 0.2), 0.21), None),
            (frustum((0.18, 0, -0.1), (0.19, 0, 0.1), 0.17, 0.12), None),
            (frustum((-0.3, 0, -0.14), (-0.52, 0, 0.1), 0.17, 0.02), None),
            (ellipsoid((0.42, 0, 0.17), (0.13, 0.1, 0.045)), CARROT),
            (mirrored(ball((0.34, 0.105, 0.27), 0.047), 1), BLACK),
            (mirrored(ellipsoid((-0.1, 0.27, -0.14), (0.22, 0.06, 0.12)), 1), WHITE),
        ],
        "boat": [
            (cut(ellipsoid((-0.05, 0, 0.08), (0.6, 0.29, 0.42)), plane(UP, 0.04), plane((-1, 0, 0), 0.46)), None),
            (cut(ellipsoid((-0.05, 0, 0.08), (0.55, 0.24, 0.38)), plane(UP, 0.055), plane((-1, 0, 0), 0.42)), CREAM),
            (box((-0.13, 0, 0.14), (0.2, 0.15, 0.12), 0.02), WHITE),
            (box((0.06, 0, 0.17), (0.025, 0.11, 0.05), 0.01), GLASS),
            (mirrored(frustum((-0.04, 0.14, 0.16), (-0.04, 0.165, 0.16), 0.05), 1), DARK),
            (mirrored(frustum((-0.2, 0.14, 0.16), (-0.2, 0.165, 0.16), 0.05), 1), DARK),
            (frustum((-0.2, 0, 0.2), (-0.2, 0, 0.48), 0.095), None),
            (frustum((-0.2, 0, 0.44), (-0.2, 0, 0.5), 0.105), DARK),
        ],
    }


OBJECTS = _objects()
