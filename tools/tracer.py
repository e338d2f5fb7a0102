"""Views of the corpus by sphere tracing: cameras and light, what they see, and the looks painted on afterwards.

Conventions as everywhere in mpiprop: the world is right-handed with z up, azimuth 0 looks from +x at the object's
front, +90 deg from +y at its left; angles are radians, colours lie in [0, 1], images are [B, H, W, C]. A picture is
linear in the look that its caption names, so an object is traced once for all its looks: `trace` returns `Layers`, and
`Layers.over` paints them. Everything runs on the device of the shots.
Shapes: B views, H = W = `size` pixels, N points or rays; points are [3, N] so that a coordinate is contiguous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.corpus.colours import grain, stripes
from mpiprop.corpus.objects import RADIUS, Thing

SUPERSAMPLE = 2  # traced pixels per image pixel and axis
STEPS = 160  # of the sphere tracer, at most
TOLERANCE = 1.2e-3  # distance to the surface that counts as a hit
CELLS = 80  # of the grid of distances, per axis
NAMED = 4  # layers that the look multiplies: light, grain, stripes, gleam


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

    def __getitem__(self, part: slice) -> Shots:
        return Shots(*(value[part] for value in vars(self).values()))

    def to(self, device: str) -> Shots:
        return Shots(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True)
class Layers:
    """Views before looks are chosen: fixed rgb, NAMED layers, NAMED layers of a support, opacity; premultiplied."""

    values: Tensor  # [B, H, W, 3 + 2 NAMED + 1]

    @property
    def alpha(self) -> Tensor:
        return self.values[..., -1:]

    @property
    def named(self) -> Tensor:
        return self.values[..., 3:3 + NAMED]

    def over(self, look: Tensor, background: Tensor, support: Tensor | None = None) -> Tensor:
        """Returns images [B, H, W, 3] in the looks [B, NAMED, 3] over a background that broadcasts to [B, H, W, 3]."""
        rgb = self.values[..., :3] + self.named @ look[:, None] + (1 - self.alpha) * background
        if support is not None:
            rgb = rgb + self.values[..., 3 + NAMED:-1] @ support[:, None]
        return rgb.clamp(0, 1)


def toward(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Returns unit vectors [B, 3] from the origin towards the angles [B]."""
    return torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1)


def still(angles: Tensor, distance: float, fovy: float) -> Shots:
    """Returns cameras at angles [B, 2] (azimuth, elevation) that look at the origin, with the light where they are."""
    azimuth, elevation = angles.unbind(1)
    same, centre = torch.ones_like(azimuth), torch.zeros(len(angles), 3)
    return Shots(azimuth, elevation, distance * same, fovy * same, centre, toward(azimuth, elevation), 0.425 * same)


def _rays(shots: Shots, size: int) -> tuple[Tensor, Tensor]:
    """Returns origins and unit directions [3, B size size] through the pixels' centres; c2w is [right, up, -look]."""
    outward = toward(shots.azimuth, shots.elevation)
    right = F.normalize(torch.stack([-outward[:, 1], outward[:, 0], torch.zeros_like(outward[:, 0])], dim=-1), dim=-1)
    up = torch.linalg.cross(right, -outward)
    pixels = torch.arange(size, device=right.device) + 0.5 - size / 2
    offset = pixels[None] * (2 * torch.tan(shots.fovy / 2) / size)[:, None]
    direction = (offset[:, None, :, None] * right[:, None, None] - offset[:, :, None, None] * up[:, None, None]
                 - outward[:, None, None])
    direction = F.normalize(direction, dim=-1)
    origin = (shots.centre + shots.distance[:, None] * outward)[:, None, None].expand_as(direction)
    return origin.reshape(-1, 3).T.contiguous(), direction.reshape(-1, 3).T.contiguous()


class Tracer:
    """A thing with its distances on a grid, which rays ask far from the surface: one look-up instead of every part."""

    def __init__(self, thing: Thing, radius: float = RADIUS, device: str = "cpu") -> None:
        self.thing, self.radius, self.cell = thing, 1.01 * radius, 2.02 * radius / CELLS
        axis = (torch.arange(CELLS, device=device) + 0.5) * self.cell - self.radius
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
        found = torch.cat([thing.distance(some) for some in points.split(1 << 17, dim=1)])
        self.bound = found - 0.5 * math.sqrt(3) * self.cell  # holds in the whole cell

    def _distance(self, p: Tensor) -> Tensor:
        cell = ((p + self.radius) / self.cell).long().clamp_(0, CELLS - 1)
        distance = self.bound[(cell[0] * CELLS + cell[1]) * CELLS + cell[2]]
        near = torch.nonzero(distance < 0.6 * self.cell)[:, 0]
        distance[near] = self.thing.distance(p[:, near])
        return distance

    def march(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the indices [M] of the rays that hit the thing and the points [3, M] where they do."""
        middle = -(origin * direction).sum(dim=0)
        chord = self.radius**2 - (origin * origin).sum(dim=0) + middle**2
        active = torch.nonzero(chord > 0)[:, 0]
        reach = chord[active].sqrt()
        t, far = (middle[active] - reach).clamp_min(0), middle[active] + reach
        o, d = origin[:, active], direction[:, active]
        hits, points = [], []
        for step in range(STEPS):
            p = o + d * t
            distance = self._distance(p)
            arrived = distance < (TOLERANCE if step < STEPS - 1 else 4 * TOLERANCE)
            hits.append(active[arrived])
            points.append(p[:, arrived])
            t = t + distance
            going = torch.nonzero(~arrived & (t < far))[:, 0]
            active, t, far, o, d = active[going], t[going], far[going], o[:, going], d[:, going]
            if not len(active):
                break
        return torch.cat(hits), torch.cat(points, dim=1)

    def normals(self, p: Tensor, which: Tensor) -> Tensor:
        """Returns the unit normals [3, M] of the parts `which` [M] at points, by differences at four corners."""
        q, normal = self.thing.local(p), torch.zeros_like(p)
        for part, (solid, _) in enumerate(self.thing.parts):
            rows = torch.nonzero(which == part)[:, 0]
            if len(rows):
                some = q[:, rows]
                for signs in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
                    corner = torch.tensor(signs, dtype=p.dtype, device=p.device)[:, None]
                    normal[:, rows] += corner * solid(some + 2e-3 * corner)
        return F.normalize(normal, dim=0)

    @torch.no_grad()
    def depth(self, shots: Shots, size: int = 64) -> Tensor:
        """Returns the depth along the optical axis [B, H, W] at the pixels' centres, infinite where nothing is."""
        origin, direction = _rays(shots, size)
        index, p = self.march(origin, direction)
        inward = -toward(shots.azimuth, shots.elevation)[index // size**2].T
        depth = torch.full((len(shots.azimuth) * size**2,), torch.inf, device=p.device)
        depth[index] = ((p - origin[:, index]) * inward).sum(dim=0)
        return depth.reshape(-1, size, size)

    @torch.no_grad()
    def trace(self, shots: Shots, size: int = 64) -> Layers:
        """Returns the layers of B views, Lambert-shaded, each pixel the mean of SUPERSAMPLE^2 rays."""
        count, fine, table = len(shots.azimuth), SUPERSAMPLE * size, self.thing.table(shots.azimuth.device)
        origin, direction = _rays(shots, fine)
        index, p = self.march(origin, direction)
        which = self.thing.distances(p).argmin(dim=0)
        normal = self.normals(p, which)
        view = index // fine**2
        ambient, light = shots.ambient[view], shots.light[view].T
        shade = ambient + (1 - ambient) * (normal * light).sum(dim=0).clamp_min(0)
        half = F.normalize(light - direction[:, index], dim=0)
        gleam = (normal * half).sum(dim=0).clamp_min(0) ** 24
        gains = torch.stack([shade, shade * grain(p), shade * stripes(p), gleam], dim=1)
        told, flat = table[which], torch.zeros(count * fine**2, 4 + 2 * NAMED, device=p.device)
        flat[index] = torch.cat([told[:, :3] * shade[:, None], told[:, 3:4] * gains, told[:, 4:] * gains,
                                 torch.ones_like(told[:, :1])], dim=1)
        pooled = F.avg_pool2d(flat.reshape(count, fine, fine, -1).movedim(-1, 1), SUPERSAMPLE)
        return Layers(pooled.movedim(1, -1))
