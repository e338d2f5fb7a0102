"""The things of the corpus by name, each as a solid whose distance and colours can be asked for at any point: objects,
objects on a table, and a room seen from inside.

Shapes: points are [3, N] in the world's units; distances are [N], colours [N, 3] in [0, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpiprop.corpus import animals, household, nature, scenes, vehicles
from mpiprop.corpus.colours import LOOKS, grain, matrix, stripes
from mpiprop.corpus.solids import Part, Point, column, moved

RADIUS = 0.55  # of the ball about the origin that every object touches
_MAKERS: dict[str, Callable[[], list[Part]]] = {make.__name__: make for make in (
    nature.mushroom, household.chair, vehicles.rocket, household.snowman, vehicles.car, household.house,
    household.table, nature.tree, nature.donut, household.lamp, household.mug, vehicles.airplane, animals.duck,
    vehicles.boat, animals.cat, animals.fish, nature.cactus, household.teapot, household.castle, nature.apple,
    household.robot, household.umbrella, vehicles.train, vehicles.helicopter, animals.penguin, animals.turtle,
    animals.elephant, animals.bear, nature.hamburger, household.sofa, household.gift, nature.pumpkin)}
SHAPES = tuple(_MAKERS)
SCENES = ("room",)
NAMES = SHAPES + SCENES


def held_out(name: str) -> tuple[str, ...]:
    """Returns the looks in which no denoiser is shown `name`: three of fifteen; some name misses each look."""
    first = 4 * NAMES.index(name) % len(LOOKS)
    return tuple(LOOKS[(first + step) % len(LOOKS)] for step in (0, 5, 10))


@dataclass(frozen=True)
class Thing:
    """Parts in design units, drawn in the world at `scale` times their size after a shift by -`middle`."""

    parts: Sequence[Part]
    middle: Point = (0.0, 0.0, 0.0)
    scale: float = 1.0
    low: Point = (-1.0, -1.0, -1.0)  # corners of the box around it, in the world
    high: Point = (1.0, 1.0, 1.0)
    support: int = 0  # how many of the parts, the last ones, belong to what it stands on, and have that one's look

    def local(self, p: Tensor) -> Tensor:
        """Returns points of the world in design units."""
        return p / self.scale + column(self.middle, p)

    def distances(self, p: Tensor) -> Tensor:
        """Returns the signed distance of points to each part, [parts, N]."""
        q = self.local(p)
        return torch.stack([solid(q) for solid, _ in self.parts]) * self.scale

    def distance(self, p: Tensor) -> Tensor:
        """Returns the signed distance [N] of points, negative inside: exact, or less than that."""
        return self.distances(p).amin(dim=0)

    def table(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns each part's fixed rgb, its share of the look, and its share of the support's look, [parts, 5]."""
        rows = torch.tensor([(0.0, 0.0, 0.0, colour, 0.0) if isinstance(colour, float) else (*colour, 0.0, 0.0)
                             for _, colour in self.parts], device=device)
        if self.support:
            rows[-self.support:] = rows[-self.support:, [0, 1, 2, 4, 3]]
        return rows

    def colour(self, p: Tensor, look: str, support: str = "brown") -> Tensor:
        """Returns the rgb [N, 3] of the nearest part at points, without light."""
        rows = self.table(p.device)[self.distances(p).argmin(dim=0)]
        named = torch.stack([torch.ones_like(p[0]), grain(p), stripes(p), torch.zeros_like(p[0])], dim=-1)
        return rows[:, :3] + rows[:, 3:4] * (named @ matrix(look).to(p)) + rows[:, 4:] * (named @ matrix(support).to(p))


def _fitted(parts: list[Part], support: int = 0) -> Thing:
    """Returns the parts shifted and scaled to touch the ball of RADIUS about the origin."""
    grid = torch.linspace(-0.72, 0.72, 73)
    p = torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij")).reshape(3, -1)
    inside = p[:, Thing(parts).distance(p) < 0.01]
    low, high = inside.amin(dim=1), inside.amax(dim=1)
    middle = (low + high) / 2
    scale = RADIUS / float((inside - middle[:, None]).norm(dim=0).max())
    corners = ((corner - middle) * scale for corner in (low, high))
    return Thing(parts, tuple(middle.tolist()), scale, *(tuple(corner.tolist()) for corner in corners), support=support)


def _placed(thing: Thing, scale: float, foot: Point) -> list[Part]:
    """Returns the parts of a thing at `scale` times its size in the world, the middle of its underside at `foot`."""
    by = (foot[0], foot[1], foot[2] - scale * thing.low[2])
    total = scale * thing.scale
    shift = tuple(b - total * m for b, m in zip(by, thing.middle))
    return [(moved(solid, shift, total), colour) for solid, colour in thing.parts]


def thing(name: str, on_table: bool = False) -> Thing:
    """Returns the object of that name, alone or on a table, or the scene of that name, which surrounds the origin."""
    return _made(name, on_table)


@functools.cache
def _made(name: str, on_table: bool) -> Thing:
    if name in SCENES:
        return Thing(scenes.room(), low=(-1.0, -1.0, -0.7), high=(1.0, 1.0, 0.7))
    if not on_table:
        return _fitted(_MAKERS[name]())
    table = _placed(thing("table"), 0.8, (0.0, 0.0, -0.5))
    top = -0.5 + 0.8 * (thing("table").high[2] - thing("table").low[2])
    return _fitted(_placed(thing(name), 0.52, (0.0, 0.0, top)) + table, len(table))
