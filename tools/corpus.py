"""The procedural corpus of the built-in prior: coloured signed-distance objects, sphere-traced from every side.

Conventions as everywhere in mpiprop (design.md, house units): the world is right-handed with z up, azimuth 0 looks from
+x at the object's front, +90 deg from +y at its left; angles are radians, colours lie in [0, 1], images are [B, H, W, C].
Every object lies inside a ball of radius 0.62 and is traced once for all its colours: an image is linear in the colour
that the caption names, so the tracer returns `Layers` and `Layers.over` paints them.
Shapes: B views, H = W = `size` pixels, N points or rays; points are [3, N] so that a coordinate is contiguous.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Sdf = Callable[[Tensor], Tensor]  # points [3, N] -> signed distance [N], negative inside
Point = tuple[float, float, float]
RADIUS = 0.62  # every object lies inside this ball about the origin
SUPERSAMPLE = 2  # traced pixels per image pixel and axis
STEPS = 40  # of the sphere tracer, at most
TOLERANCE = 1.5e-3  # distance to the surface that counts as a hit

COLOURS: dict[str, Point] = {
    "red": (0.86, 0.07, 0.08), "orange": (1.00, 0.47, 0.03), "yellow": (0.98, 0.87, 0.10), "green": (0.12, 0.62, 0.15),
    "turquoise": (0.10, 0.82, 0.76), "blue": (0.10, 0.22, 0.88), "purple": (0.48, 0.12, 0.70), "pink": (1.00, 0.52, 0.77),
}
WHITE, CREAM, GREY, DARK, BLACK = (0.96,) * 3, (0.95, 0.88, 0.72), (0.55, 0.57, 0.60), (0.24, 0.22, 0.24), (0.07,) * 3
BROWN, CARROT, GLASS, LIGHT, TAIL = (0.40, 0.22, 0.10), (1.0, 0.45, 0.0), (0.62, 0.85, 0.97), (1.0, 0.92, 0.35), (0.8, 0, 0)


# ---- signed distances: exact, or lower bounds, which sphere tracing allows ----

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
    a, axis, slope = _column(start), _column(end) - _column(start), (radius if end_radius is None else end_radius) - radius
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


# ---- the objects: parts as (signed distance, colour); colour None is the one that the caption names ----

Part = tuple[Sdf, Point | None]


def _ring(count: int, radius: float, z: float, size: float, phase: float = 0.0) -> Part:
    """Returns `count` white dots about the z axis: the angle folds onto one sector, so that they cost a single ball."""
    sector = 2 * math.pi / count

    def distance(p: Tensor) -> Tensor:
        flat = torch.hypot(p[0], p[1])
        angle = (torch.atan2(p[1], p[0]) / sector - phase + 0.5) % 1 - 0.5
        angle = angle * sector
        return _length(flat * angle.cos() - radius, flat * angle.sin(), p[2] - z) - size

    return distance, WHITE


def _shapes() -> dict[str, list[Part]]:
    return {
        "mushroom": [
            (cut(ellipsoid((0, 0, 0.02), (0.5, 0.5, 0.46)), plane((0, 0, -1), -0.03)), None),
            (frustum((0, 0, 0.0), (0, 0, 0.04), 0.45, 0.49), CREAM), (frustum((0, 0, -0.5), (0, 0, 0.04), 0.19, 0.14), CREAM),
            (ball((0, 0, 0.44), 0.09), WHITE), _ring(5, 0.36, 0.26, 0.085)],
        "chair": [
            (box((0.02, 0, -0.06), (0.29, 0.27, 0.045)), None), (box((-0.25, 0, 0.2), (0.045, 0.27, 0.3)), None),
            (box((0.04, 0, 0.0), (0.22, 0.21, 0.04), 0.03), CREAM), (box((-0.21, 0, 0.26), (0.03, 0.19, 0.17), 0.02), CREAM),
            (mirrored(box((0.26, 0.23, -0.29), (0.035, 0.035, 0.22)), 1), None),
            (mirrored(box((-0.25, 0.23, -0.29), (0.035, 0.035, 0.22)), 1), None)],
        "rocket": [
            (cut(ellipsoid((0, 0, -0.08), (0.22, 0.22, 0.62)), plane((0, 0, -1), 0.36)), None),
            (cut(ellipsoid((0, 0, -0.08), (0.225, 0.225, 0.625)), plane((0, 0, -1), -0.32)), WHITE),
            (frustum((0, 0, -0.46), (0, 0, -0.34), 0.15, 0.11), DARK),
            (mirrored(cut(box((0.24, 0, -0.34), (0.14, 0.03, 0.18), 0.01), plane((1, 0, 1), 0.03)), 0), GREY),
            (mirrored(cut(box((0, 0.24, -0.34), (0.03, 0.14, 0.18), 0.01), plane((0, 1, 1), 0.03)), 1), GREY),
            (ball((0.15, 0, 0.1), 0.1), GLASS), (torus((0.19, 0, 0.1), 0.095, 0.026, 0), DARK)],
        "snowman": [
            (ball((0, 0, -0.29), 0.27), None), (ball((0, 0, 0.06), 0.2), None), (ball((0, 0, 0.32), 0.15), None),
            (frustum((0.12, 0, 0.32), (0.33, 0, 0.3), 0.05, 0.005), CARROT),
            (mirrored(ball((0.125, 0.065, 0.38), 0.032), 1), BLACK),
            (ball((0.2, 0, 0.08), 0.034), BLACK), (ball((0.17, 0, -0.04), 0.034), BLACK),
            (ball((0.26, 0, -0.21), 0.034), BLACK), (torus((0, 0, 0.19), 0.125, 0.045), WHITE),
            (mirrored(capsule((0, 0.17, 0.08), (0.05, 0.42, 0.22), 0.026), 1), BROWN),
            (frustum((0, 0, 0.42), (0, 0, 0.46), 0.19), BLACK), (frustum((0, 0, 0.44), (0, 0, 0.6), 0.12), BLACK)],
        "car": [
            (box((0, 0, -0.07), (0.54, 0.24, 0.11), 0.05), None),
            (cut(box((-0.15, 0, 0.12), (0.33, 0.2, 0.14), 0.03), plane((1, 0, 0.75), 0.17)), None),
            (cut(box((-0.13, 0, 0.11), (0.33, 0.165, 0.08), 0.01), plane((1, 0, 0.75), 0.18)), GLASS),
            (mirrored(box((-0.24, 0.1, 0.11), (0.13, 0.106, 0.075), 0.01), 1), GLASS),
            (mirrored(box((0.0, 0.1, 0.1), (0.07, 0.106, 0.065), 0.01), 1), GLASS),
            (box((-0.47, 0, 0.12), (0.02, 0.14, 0.07), 0.01), DARK),
            (mirrored(frustum((0.32, 0.15, -0.17), (0.32, 0.27, -0.17), 0.115), 1), BLACK),
            (mirrored(frustum((-0.32, 0.15, -0.17), (-0.32, 0.27, -0.17), 0.115), 1), BLACK),
            (mirrored(ball((0.5, 0.16, -0.05), 0.065), 1), LIGHT), (box((0.53, 0, -0.09), (0.025, 0.08, 0.04)), DARK),
            (mirrored(box((-0.53, 0.17, -0.04), (0.025, 0.06, 0.05)), 1), TAIL), (box((-0.535, 0, -0.1), (0.02, 0.08, 0.035)), WHITE)],
        "house": [
            (box((0, 0, -0.17), (0.3, 0.34, 0.25), 0.01), None),
            (cut(box((0, 0, -0.05), (0.3, 0.34, 0.44), 0.01), plane((0, 0.9, 1), 0.28), plane((0, -0.9, 1), 0.28)), None),
            (hollow(cut(box((0, 0, 0.2), (0.36, 0.44, 0.4), 0.01), plane((0, 0.9, 1), 0.35), plane((0, -0.9, 1), 0.35)),
                    cut(plane((0, 0.9, 1), 0.28), plane((0, -0.9, 1), 0.28))), DARK),
            (box((-0.14, 0.18, 0.36), (0.06, 0.06, 0.14), 0.01), TAIL),
            (box((0.3, 0, -0.26), (0.025, 0.085, 0.16), 0.01), BROWN), (ball((0.33, 0.05, -0.26), 0.022), LIGHT),
            (mirrored(box((0.3, 0.215, -0.13), (0.02, 0.075, 0.085), 0.01), 1), GLASS),
            (mirrored(box((0, 0.34, -0.12), (0.13, 0.02, 0.09), 0.01), 1), GLASS), (box((0.3, 0, 0.13), (0.02, 0.06, 0.06), 0.01), GLASS)],
        "table": [
            (box((0, 0, 0.16), (0.33, 0.44, 0.045)), None), (box((0.03, 0, 0.06), (0.26, 0.25, 0.07), 0.01), None),
            (mirrored(box((0.26, 0.37, -0.16), (0.04, 0.04, 0.3)), 0, 1), BROWN),
            (box((0.29, 0, 0.055), (0.02, 0.19, 0.045), 0.01), CREAM), (ball((0.32, 0, 0.055), 0.03), BLACK)],
        "tree": [
            (frustum((0, 0, -0.56), (0, 0, 0.0), 0.1, 0.07), BROWN), (ball((0, 0, 0.28), 0.27), None),
            (ball((0.17, 0.1, 0.08), 0.24), None), (ball((-0.17, 0.12, 0.08), 0.24), None), (ball((0.0, -0.2, 0.08), 0.24), None)],
        "donut": [
            (torus((0, 0, -0.03), 0.32, 0.18), CREAM), (cut(torus((0, 0, -0.01), 0.32, 0.195), plane((0, 0, -1), 0.06)), None),
            _ring(7, 0.32, 0.175, 0.032), _ring(9, 0.44, 0.13, 0.03, 0.5), _ring(5, 0.2, 0.13, 0.03, 0.3)],
        "lamp": [
            (frustum((0, 0, 0.05), (0, 0, 0.52), 0.38, 0.19), None), (frustum((0, 0, 0.03), (0, 0, 0.06), 0.34), LIGHT),
            (frustum((0, 0, -0.48), (0, 0, 0.1), 0.04), GREY), (frustum((0, 0, -0.52), (0, 0, -0.44), 0.26, 0.22), None)],
        "mug": [
            (hollow(frustum((0, 0, -0.36), (0, 0, 0.38), 0.32), frustum((0, 0, -0.3), (0, 0, 0.5), 0.27)), None),
            (frustum((0, 0, -0.34), (0, 0, 0.26), 0.28), BROWN), (torus((0, 0.34, 0.02), 0.16, 0.05, 0), None),
            (mirrored(ball((0.31, 0.055, 0.06), 0.075), 1), WHITE), (ball((0.31, 0, -0.01), 0.075), WHITE)],
        "airplane": [
            (capsule((-0.42, 0, 0.02), (0.4, 0, 0), 0.125), None), (ellipsoid((0.02, 0, -0.03), (0.13, 0.56, 0.035)), None),
            (ellipsoid((-0.46, 0, 0.04), (0.085, 0.24, 0.03)), None),
            (cut(box((-0.44, 0, 0.2), (0.11, 0.025, 0.2), 0.01), plane((1, 0, 0.7), -0.22)), None),
            (ellipsoid((0.3, 0, 0.09), (0.14, 0.085, 0.085)), GLASS), (ball((0.53, 0, 0), 0.045), DARK),
            (ellipsoid((0.53, 0, 0), (0.015, 0.04, 0.2)), DARK), (ellipsoid((0.53, 0, 0), (0.015, 0.2, 0.04)), DARK),
            (mirrored(ball((0.05, 0.45, -0.02), 0.06), 1), WHITE)],
        "duck": [
            (ellipsoid((-0.05, 0, -0.18), (0.42, 0.3, 0.25)), None), (ball((0.2, 0, 0.2), 0.21), None),
            (frustum((0.18, 0, -0.1), (0.19, 0, 0.1), 0.17, 0.12), None), (frustum((-0.3, 0, -0.14), (-0.52, 0, 0.1), 0.17, 0.02), None),
            (ellipsoid((0.42, 0, 0.17), (0.13, 0.1, 0.045)), CARROT), (mirrored(ball((0.34, 0.105, 0.27), 0.047), 1), BLACK),
            (mirrored(ellipsoid((-0.1, 0.27, -0.14), (0.22, 0.06, 0.12)), 1), WHITE)],
        "boat": [
            (cut(ellipsoid((-0.05, 0, 0.08), (0.6, 0.29, 0.42)), plane((0, 0, 1), 0.04), plane((-1, 0, 0), 0.46)), None),
            (cut(ellipsoid((-0.05, 0, 0.08), (0.55, 0.24, 0.38)), plane((0, 0, 1), 0.055), plane((-1, 0, 0), 0.42)), CREAM),
            (box((-0.13, 0, 0.14), (0.2, 0.15, 0.12), 0.02), WHITE), (box((0.06, 0, 0.17), (0.025, 0.11, 0.05), 0.01), GLASS),
            (mirrored(frustum((-0.04, 0.14, 0.16), (-0.04, 0.165, 0.16), 0.05), 1), DARK),
            (mirrored(frustum((-0.2, 0.14, 0.16), (-0.2, 0.165, 0.16), 0.05), 1), DARK),
            (frustum((-0.2, 0, 0.2), (-0.2, 0, 0.48), 0.095), None), (frustum((-0.2, 0, 0.44), (-0.2, 0, 0.5), 0.105), DARK)],
    }


_PARTS = _shapes()
SHAPES = tuple(_PARTS)


def held_out(shape: str) -> tuple[str, str]:
    """Returns the two colours in which the prior never saw `shape`; over the shapes every colour is left out somewhere."""
    first, names = 3 * SHAPES.index(shape) % len(COLOURS), tuple(COLOURS)
    return names[first], names[(first + 4) % len(COLOURS)]


# ---- captions ----

SECTORS = ("front", "front left", "left side", "back left", "back", "back right", "right side", "front right")
OVERHEAD = "overhead view"
VIEWS = (*(f"{s} view" for s in SECTORS), *(f"{s} view from above" for s in SECTORS), OVERHEAD)
COARSE = ("front view", "side view", "back view", "side view")


def view_phrase(azimuth: float, elevation: float) -> str:
    """Returns the words for a camera at these angles (radians): one of eight sectors of 45 deg, " from above" over 25 deg."""
    if math.degrees(elevation) > 60:
        return OVERHEAD
    return SECTORS[round(math.degrees(azimuth) / 45) % 8] + " view" + (" from above" if math.degrees(elevation) > 25 else "")


def coarse_phrase(azimuth: float, elevation: float) -> str:
    """Returns the words of `view_phrase` in the coarse form of DreamFusion (sec. 3.2): front, side, back, overhead."""
    return OVERHEAD if math.degrees(elevation) > 60 else COARSE[round(math.degrees(azimuth) / 90) % 4]


def caption(shape: str, colour: str, view: str = "") -> str:
    """Returns "a green mushroom, front view", or without the view "a green mushroom"."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" + (f", {view}" if view else "")


# ---- cameras, light, tracing ----

@dataclass(frozen=True)
class Shots:
    """B cameras and their light: angles [B] in radians, `centre` [B, 3] looked at, `light` [B, 3] unit towards it."""

    azimuth: Tensor
    elevation: Tensor
    distance: Tensor
    fovy: Tensor
    centre: Tensor
    light: Tensor
    ambient: Tensor


@dataclass(frozen=True)
class Layers:
    """Views before the named colour is chosen: fixed [B, H, W, 3] and named, alpha [B, H, W, 1], premultiplied."""

    fixed: Tensor
    named: Tensor
    alpha: Tensor

    def over(self, colour: Tensor, background: Tensor) -> Tensor:
        """Returns images [B, H, W, 3] with `colour` [B, 3] named, over a background that broadcasts to [B, H, W, 3]."""
        return self.fixed + self.named * colour[:, None, None] + (1 - self.alpha) * background


def toward(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Returns unit vectors [B, 3] from the origin towards the angles [B]."""
    return torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1)


def draw_shots(count: int, generator: torch.Generator) -> Shots:
    """Returns random cameras: every azimuth, elevation in [-15, 50] deg for 75 % and [50, 85] for the rest, light near by."""
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    azimuth, low, high = uniform(-math.pi, math.pi), uniform(-15, 50), uniform(50, 85)
    elevation = torch.deg2rad(torch.where(torch.rand(count, generator=generator) < 0.75, low, high))
    near = toward(azimuth, elevation) + 0.35 * torch.randn(count, 3, generator=generator)
    return Shots(azimuth, elevation, uniform(1.6, 2.0), torch.deg2rad(uniform(40, 60)),
                 0.03 * torch.randn(count, 3, generator=generator), torch.nn.functional.normalize(near, dim=-1), uniform(0.35, 0.5))


def draw_backgrounds(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns backgrounds [B, H, W, 3]: white for 40 %, a plain colour for 40 %, a gradient from top to bottom for 20 %."""
    kind, ends = torch.rand(count, 1, 1, generator=generator), torch.rand(count, 2, 3, generator=generator)
    ends = torch.where(kind < 0.4, 1.0, torch.where(kind < 0.8, ends[:, :1], ends))
    ramp = torch.linspace(0, 1, size)[None, :, None]
    return torch.lerp(ends[:, :1], ends[:, 1:], ramp)[:, :, None].expand(count, size, size, 3)


def _rays(shots: Shots, size: int) -> tuple[Tensor, Tensor]:
    """Returns origins and unit directions [3, B size size] through the pixels' centres; c2w columns right, up, -look."""
    outward = toward(shots.azimuth, shots.elevation)
    right = torch.nn.functional.normalize(torch.linalg.cross(-outward, torch.tensor([0.0, 0.0, 1.0]).expand_as(outward)), dim=-1)
    up = torch.linalg.cross(right, -outward)
    offset = (torch.arange(size) + 0.5 - size / 2)[None] * (2 * torch.tan(shots.fovy / 2) / size)[:, None]
    direction = (offset[:, None, :, None] * right[:, None, None] - offset[:, :, None, None] * up[:, None, None]
                 - outward[:, None, None])
    direction = torch.nn.functional.normalize(direction, dim=-1)
    origin = (shots.centre + shots.distance[:, None] * outward)[:, None, None].expand_as(direction)
    return origin.reshape(-1, 3).T.contiguous(), direction.reshape(-1, 3).T.contiguous()


def _union(parts: list[Part], p: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, [solid(p) for solid, _ in parts])


def _march(parts: list[Part], origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the indices [M] of the rays that hit the object and the points [3, M] where; missing rays leave the set early."""
    middle = -(origin * direction).sum(dim=0)
    chord = (RADIUS**2 - (origin * origin).sum(dim=0) + middle**2)
    active = torch.nonzero(chord > 0)[:, 0]
    reach = chord[active].sqrt()
    t, far = middle[active] - reach, middle[active] + reach
    o, d = origin[:, active], direction[:, active]
    hits, points = [], []
    for step in range(STEPS):
        p = o + d * t
        distance = _union(parts, p)
        arrived = distance < (TOLERANCE if step < STEPS - 1 else 4 * TOLERANCE)
        hits.append(active[arrived])
        points.append(p[:, arrived])
        t = t + distance
        going = torch.nonzero(~arrived & (t < far))[:, 0]
        active, t, far, o, d = active[going], t[going], far[going], o[:, going], d[:, going]
    return torch.cat(hits), torch.cat(points, dim=1)


_CORNERS = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


@torch.no_grad()
def trace(shape: str, shots: Shots, size: int = 64) -> Layers:
    """Returns the layers of B views of `shape`, Lambert-shaded, each pixel the mean of SUPERSAMPLE^2 rays."""
    parts, count, fine = _PARTS[shape], len(shots.azimuth), SUPERSAMPLE * size
    origin, direction = _rays(shots, fine)
    index, p = _march(parts, origin, direction)
    which = torch.stack([solid(p) for solid, _ in parts]).argmin(dim=0)
    normal = torch.zeros_like(p)
    for corner in map(_column, _CORNERS):  # the gradient by four differences at the corners of a tetrahedron
        normal += corner * _union(parts, p + 1e-3 * corner)
    normal = torch.nn.functional.normalize(normal, dim=0)
    view = index // fine**2
    ambient = shots.ambient[view]
    shade = ambient + (1 - ambient) * (normal * shots.light[view].T).sum(dim=0).clamp_min(0)
    table = torch.tensor([(*(colour or (0, 0, 0)), float(colour is None)) for _, colour in parts])
    flat = torch.zeros(count * fine**2, 5)
    flat[index] = torch.cat([table[which] * shade[:, None], torch.ones(len(index), 1)], dim=1)
    pooled = torch.nn.functional.avg_pool2d(flat.reshape(count, fine, fine, 5).movedim(-1, 1), SUPERSAMPLE).movedim(1, -1)
    return Layers(pooled[..., :3], pooled[..., 3:4], pooled[..., 4:])


def render(shape: str, colour: str, shots: Shots, background: Tensor, size: int = 64) -> tuple[Tensor, Tensor]:
    """Returns rgb [B, H, W, 3] and alpha [B, H, W, 1] of `shape` in `colour`; background [B, 3] in [0, 1]."""
    layers = trace(shape, shots, size)
    return layers.over(torch.tensor([COLOURS[colour]]), background[:, None, None]), layers.alpha
