"""The looks that captions name, twelve colours and three materials, and the fixed colours of parts. RGB in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from mpiprop.corpus.solids import Point

WHITE, CREAM, GREY, DARK, BLACK = (0.96,) * 3, (0.95, 0.88, 0.72), (0.58, 0.60, 0.63), (0.24, 0.22, 0.24), (0.07,) * 3
BROWN, TAN, CLAY, BRICK = (0.40, 0.22, 0.10), (0.85, 0.62, 0.34), (0.78, 0.4, 0.24), (0.80, 0.12, 0.08)
CARROT, LIGHT, ROSE, LEAF = (1.0, 0.5, 0.05), (1.0, 0.92, 0.35), (0.98, 0.6, 0.66), (0.25, 0.62, 0.2)

COLOURS: dict[str, Point] = {
    "red": (0.86, 0.07, 0.08), "orange": (1.00, 0.47, 0.03), "yellow": (0.98, 0.87, 0.10), "green": (0.12, 0.62, 0.15),
    "turquoise": (0.10, 0.82, 0.76), "blue": (0.10, 0.22, 0.88), "purple": (0.48, 0.12, 0.70),
    "pink": (1.00, 0.52, 0.77), "brown": (0.45, 0.25, 0.11), "black": (0.13, 0.13, 0.15), "grey": (0.52, 0.53, 0.56),
    "white": (0.95, 0.95, 0.95)}
MATERIALS = ("wooden", "golden", "striped")
LOOKS = (*COLOURS, *MATERIALS)
DARK_WOOD, PALE_WOOD, GOLD, GLEAM = (0.45, 0.25, 0.10), (0.82, 0.58, 0.32), (0.80, 0.55, 0.08), (0.85, 0.75, 0.45)
STRIPE, BETWEEN = (0.10, 0.16, 0.55), (0.96, 0.95, 0.92)


def grain(p: Tensor) -> Tensor:
    """Returns how dark wood is at points [3, N], in [0, 1]: wavering year rings about an axis near the x axis."""
    y, z = p[1] + 0.15 * p[0] + 0.35, p[2] - 0.1 * p[0] + 0.5
    rings = 13 * torch.hypot(y, z) + 0.6 * (5 * p[0]).sin() + 0.25 * (11 * p[1] + 7 * p[2]).sin()
    return (rings - rings.floor()).square()


def stripes(p: Tensor) -> Tensor:
    """Returns 1 inside and 0 between stripes at points [3, N]: level bands, tilted a little."""
    return ((p[2] + 0.3 * p[1] + 0.1 * p[0]) * 6.5 % 1 < 0.5).to(p)


def matrix(look: str) -> Tensor:
    """Returns the rgb [4, 3] that a look gives to a surface's light, to what the grain takes of it, to what stripes
    take of it, and to its gleam, so that a picture is linear in it."""
    table = torch.zeros(4, 3)
    if look in COLOURS:
        table[0] = torch.tensor(COLOURS[look])
    elif look == "wooden":
        table[0], table[1] = torch.tensor(PALE_WOOD), torch.tensor(DARK_WOOD) - torch.tensor(PALE_WOOD)
    elif look == "golden":
        table[0], table[3] = torch.tensor(GOLD), torch.tensor(GLEAM)
    else:
        table[0], table[2] = torch.tensor(BETWEEN), torch.tensor(STRIPE) - torch.tensor(BETWEEN)
    return table
