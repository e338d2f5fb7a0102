"""The procedural corpus of the built-in prior: coloured signed-distance objects, sphere-traced from every side.

Conventions as everywhere in mpiprop: the world is right-handed with z up, azimuth 0 looks from +x at the object's
front, +90 deg from +y at its left; angles are radians, colours lie in [0, 1], images are [B, H, W, C]. An image is
linear in the colour that the caption names, so an object is traced once for all its colours: `trace` returns `Layers`,
and `Layers.over` paints them.
Shapes: B views, H = W = `size` pixels, N points or rays; points are [3, N] so that a coordinate is contiguous.

    python -m tools.corpus SHAPE COLOUR OUT.png [--azimuth 0] [--elevation 15] [--distance 1.8] [--fovy 49.1] [--size 256]

writes one view (degrees) with its exact opacity, to make objects from.
"""

from __future__ import annotations

import argparse
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.solids import OBJECTS, RADIUS, Part, Point

SHAPES = tuple(OBJECTS)
SUPERSAMPLE = 2  # traced pixels per image pixel and axis
STEPS = 40  # of the sphere tracer, at most
TOLERANCE = 1.5e-3  # distance to the surface that counts as a hit

COLOURS: dict[str, Point] = {
    "red": (0.86, 0.07, 0.08),
    "orange": (1.00, 0.47, 0.03),
    "yellow": (0.98, 0.87, 0.10),
    "green": (0.12, 0.62, 0.15),
    "turquoise": (0.10, 0.82, 0.76),
    "blue": (0.10, 0.22, 0.88),
    "purple": (0.48, 0.12, 0.70),
    "pink": (1.00, 0.52, 0.77),
}


def held_out(shape: str) -> tuple[str, str]:
    """Returns the two colours in which the prior never saw `shape`; every colour is missed by some shape."""
    first, names = 3 * SHAPES.index(shape) % len(COLOURS), tuple(COLOURS)
    return names[first], names[(first + 4) % len(COLOURS)]


# ---- captions ----

SECTORS = ("front", "front left", "left side", "back left", "back", "back right", "right side", "front right")
OVERHEAD = "overhead view"
VIEWS = (*(f"{s} view" for s in SECTORS), *(f"{s} view from above" for s in SECTORS), OVERHEAD)
COARSE = ("front view", "side view", "back view", "side view")


def view_phrase(azimuth: float, elevation: float) -> str:
    """Returns the words for a camera at these angles (radians): a sector of 45 deg, " from above" over 25 deg."""
    if math.degrees(elevation) > 60:
        return OVERHEAD
    sector = SECTORS[round(math.degrees(azimuth) / 45) % 8]
    return f"{sector} view from above" if math.degrees(elevation) > 25 else f"{sector} view"


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
    """Returns random cameras: any azimuth, elevation in [-15, 50] deg for 75 % and [50, 85] else; light near by."""
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    azimuth, low, high = uniform(-math.pi, math.pi), uniform(-15, 50), uniform(50, 85)
    elevation = torch.deg2rad(torch.where(torch.rand(count, generator=generator) < 0.75, low, high))
    near = toward(azimuth, elevation) + 0.35 * torch.randn(count, 3, generator=generator)
    return Shots(azimuth, elevation, uniform(1.6, 2.0), torch.deg2rad(uniform(40, 60)),
                 0.03 * torch.randn(count, 3, generator=generator), F.normalize(near, dim=-1), uniform(0.35, 0.5))


def draw_backgrounds(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns backgrounds [B, H, W, 3]: 40 % white, 40 % a plain colour, 20 % a gradient from top to bottom."""
    kind, ends = torch.rand(count, 1, 1, generator=generator), torch.rand(count, 2, 3, generator=generator)
    ends = torch.where(kind < 0.4, 1.0, torch.where(kind < 0.8, ends[:, :1], ends))
    ramp = torch.linspace(0, 1, size)[None, :, None]
    return torch.lerp(ends[:, :1], ends[:, 1:], ramp)[:, :, None].expand(count, size, size, 3)


def _rays(shots: Shots, size: int) -> tuple[Tensor, Tensor]:
    """Returns origins and unit directions [3, B size size] through the pixels' centres; c2w is [right, up, -look]."""
    outward = toward(shots.azimuth, shots.elevation)
    right = F.normalize(torch.linalg.cross(-outward, torch.tensor([0.0, 0.0, 1.0]).expand_as(outward)), dim=-1)
    up = torch.linalg.cross(right, -outward)
    offset = (torch.arange(size) + 0.5 - size / 2)[None] * (2 * torch.tan(shots.fovy / 2) / size)[:, None]
    direction = (offset[:, None, :, None] * right[:, None, None] - offset[:, :, None, None] * up[:, None, None]
                 - outward[:, None, None])
    direction = F.normalize(direction, dim=-1)
    origin = (shots.centre + shots.distance[:, None] * outward)[:, None, None].expand_as(direction)
    return origin.reshape(-1, 3).T.contiguous(), direction.reshape(-1, 3).T.contiguous()


def _union(parts: list[Part], p: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, [solid(p) for solid, _ in parts])


def _march(parts: list[Part], origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the indices [M] of the rays that hit the object and the points [3, M] where they do."""
    middle = -(origin * direction).sum(dim=0)
    chord = RADIUS**2 - (origin * origin).sum(dim=0) + middle**2
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


_CORNERS = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])


@torch.no_grad()
def trace(shape: str, shots: Shots, size: int = 64) -> Layers:
    """Returns the layers of B views of `shape`, Lambert-shaded, each pixel the mean of SUPERSAMPLE^2 rays."""
    parts, count, fine = OBJECTS[shape], len(shots.azimuth), SUPERSAMPLE * size
    origin, direction = _rays(shots, fine)
    index, p = _march(parts, origin, direction)
    which = torch.stack([solid(p) for solid, _ in parts]).argmin(dim=0)
    normal = torch.zeros_like(p)
    for corner in _CORNERS[:, :, None]:  # the gradient by four differences at the corners of a tetrahedron
        normal += corner * _union(parts, p + 1e-3 * corner)
    normal = F.normalize(normal, dim=0)
    view = index // fine**2
    ambient = shots.ambient[view]
    shade = ambient + (1 - ambient) * (normal * shots.light[view].T).sum(dim=0).clamp_min(0)
    table = torch.tensor([(*(colour or (0, 0, 0)), float(colour is None)) for _, colour in parts])
    flat = torch.zeros(count * fine**2, 5)
    flat[index] = torch.cat([table[which] * shade[:, None], torch.ones(len(index), 1)], dim=1)
    pooled = F.avg_pool2d(flat.reshape(count, fine, fine, 5).movedim(-1, 1), SUPERSAMPLE).movedim(1, -1)
    return Layers(pooled[..., :3], pooled[..., 3:4], pooled[..., 4:])


def render(shape: str, colour: str, shots: Shots, background: Tensor, size: int = 64) -> tuple[Tensor, Tensor]:
    """Returns rgb [B, H, W, 3] and alpha [B, H, W, 1] of `shape` in `colour`; background [B, 3] in [0, 1]."""
    layers = trace(shape, shots, size)
    return layers.over(torch.tensor([COLOURS[colour]]), background[:, None, None]), layers.alpha


def still(angles: Tensor, distance: float, fovy: float) -> Shots:
    """Returns cameras at angles [B, 2] (azimuth, elevation) that look at the origin, with the light where they are."""
    azimuth, elevation = angles.unbind(1)
    same, centre = torch.ones_like(azimuth), torch.zeros(len(angles), 3)
    return Shots(azimuth, elevation, distance * same, fovy * same, centre, toward(azimuth, elevation), 0.425 * same)


def photograph(shape: str, colour: str, path: Path, azimuth: float, elevation: float, distance: float, fovy: float,
               size: int = 256) -> None:
    """Writes a view of an object as RGBA; angles in degrees."""
    from mpiprop.io.pictures import png

    angles = torch.deg2rad(torch.tensor([[azimuth, elevation]], dtype=torch.float32))
    layers = trace(shape, still(angles, distance, math.radians(fovy)), size)
    premultiplied = layers.over(torch.tensor([COLOURS[colour]]), torch.zeros(3))
    png(torch.cat([premultiplied / layers.alpha.clamp_min(1e-6), layers.alpha], -1)[0], path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.corpus", description="A view of an object with its exact opacity, a "
                                     "picture to make objects from.", epilog="example: python -m tools.corpus chair orange "
                                     "chair.png --azimuth 30", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("colour", choices=COLOURS, metavar="COLOUR", help=", ".join(COLOURS))
    parser.add_argument("out", type=Path, metavar="OUT.png", help="where the picture goes")
    for name, default, text in (("azimuth", 0, "side that it is seen from, degrees, 0 is the front"),
                                ("elevation", 15, "height that it is seen from, degrees above the object's"),
                                ("distance", 1.8, "distance of the camera, world units (objects are about 1 across)"),
                                ("fovy", 49.1, "vertical field of view, degrees")):
        parser.add_argument(f"--{name}", type=float, default=default, help=text)
    parser.add_argument("--size", type=int, default=256, help="height and width, pixels")
    args = parser.parse_args()
    photograph(args.shape, args.colour, args.out, args.azimuth, args.elevation, args.distance, args.fovy, args.size)
    article = "an" if args.colour[0] in "aeiou" else "a"
    print(f"{args.out}: {article} {args.colour} {args.shape}, {args.size} x {args.size} pixels")


if __name__ == "__main__":
    main()
