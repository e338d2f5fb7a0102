"""A room, seen from inside. World units: the origin is at eye height in its middle, the walls 1 away."""

from __future__ import annotations

from mpiprop.corpus import household, nature
from mpiprop.corpus.colours import BRICK, BROWN, CREAM, DARK, LEAF, LIGHT, WHITE
from mpiprop.corpus.solids import DOWN, Part, Point, ball, box, cut, frustum, join, moved, plane, rowed, turned

FLOOR = -0.55


def _furniture(parts: list[Part], colour: Point, by: Point, scale: float, degrees: float = 0.0) -> list[Part]:
    """Returns an object turned about z, scaled and shifted, with `colour` where a caption's would be."""
    def painted(share: Point | float) -> Point:
        return tuple(c * share for c in colour) if isinstance(share, float) else share

    return [(moved(turned(solid, 2, degrees), by, scale), painted(share)) for solid, share in parts]


def _frame(centre: Point, half: Point, picture: Point) -> list[Part]:
    """Returns a picture in a wooden frame on a wall."""
    inner = tuple(h - 0.035 if h > 0.05 else h + 0.004 for h in half)
    return [(box(centre, half, 0.005), BROWN), (box(centre, inner, 0.003), picture)]


def room() -> list[Part]:
    """Returns walls in the named look, a sofa under pictures at -x, a window at -y, a door at +x, books at +y."""
    walls: list[Part] = [
        (join(plane((1, 0, 0), -1.0), plane((-1, 0, 0), -1.0), plane((0, 1, 0), -1.0), plane((0, -1, 0), -1.0)), 1.0),
        (plane((0, 0, -1), -0.7), WHITE),
        (plane((0, 0, 1), FLOOR), (0.72, 0.5, 0.3)),
        (
            cut(
                plane((0, 0, 1), FLOOR + 0.06),
                join(*(plane(n, -0.985) for n in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)))),
            ),
            WHITE,
        ),
        (frustum((0, 0, FLOOR), (0, 0, FLOOR + 0.012), 0.5), (0.75, 0.2, 0.25)),
        (frustum((0, 0, FLOOR), (0, 0, FLOOR + 0.016), 0.4), CREAM),
        (frustum((0, 0, FLOOR), (0, 0, FLOOR + 0.02), 0.2), (0.75, 0.2, 0.25)),
        (frustum((0, 0, 0.6), (0, 0, 0.72), 0.01), DARK),
        (cut(ball((0, 0, 0.52), 0.14), plane(DOWN, -0.5)), LIGHT),
    ]
    panes = rowed(rowed(box((0, -0.985, 0), (0.15, 0.025, 0.122), 0.005), 0, 0.335, 2), 2, 0.275, 2)
    window: list[Part] = [
        (box((0.0, -1.0, 0.12), (0.36, 0.03, 0.3), 0.01), WHITE),
        (moved(panes, (0, 0, 0.12)), (0.55, 0.8, 0.98)),
        (join(*(box((x, -0.96, 0.12), (0.06, 0.03, 0.36), 0.03) for x in (-0.43, 0.43))), (0.95, 0.75, 0.25)),
        (box((0, -0.96, 0.49), (0.55, 0.02, 0.015), 0.01), BROWN),
        (ball((0.17, -0.98, 0.2), 0.05), LIGHT),
    ]
    door: list[Part] = [
        (box((1.0, 0.25, -0.1), (0.03, 0.26, 0.47), 0.01), WHITE),
        (box((0.99, 0.25, -0.12), (0.03, 0.21, 0.44), 0.01), (0.5, 0.28, 0.12)),
        (ball((0.95, 0.1, -0.12), 0.03), LIGHT),
    ]
    shelf: list[Part] = [
        (box((0, 1.0, -0.15), (0.42, 0.14, 0.42), 0.01), BROWN),
        (moved(rowed(box((0, 0.9, 0), (0.38, 0.05, 0.11), 0.004), 2, 0.27, 3), (0, 0, -0.15)), (0.25, 0.14, 0.07)),
    ]
    for row, z in enumerate((-0.45, -0.18, 0.09)):
        for shift, colour in enumerate((BRICK, (0.2, 0.4, 0.8), (0.9, 0.75, 0.2), (0.2, 0.6, 0.35))):
            books = rowed(box((0, 0.87, 0), (0.024, 0.05, 0.085 - 0.008 * shift), 0.004), 0, 0.22, 3)
            shelf.append((moved(books, (-0.075 + 0.055 * ((shift + row) % 4), 0, z + 0.025 - 0.008 * shift)), colour))
    return [
        *walls,
        *window,
        *door,
        *shelf,
        *_furniture(household.sofa(), (0.85, 0.45, 0.15), (-0.72, 0.0, FLOOR + 0.24), 0.75),
        *_frame((-1.0, -0.25, 0.25), (0.025, 0.16, 0.13), (0.3, 0.6, 0.85)),
        *_frame((-1.0, 0.25, 0.25), (0.025, 0.12, 0.16), (0.95, 0.8, 0.4)),
        *_furniture(household.table(), (0.6, 0.38, 0.2), (0.0, -0.68, FLOOR + 0.3), 0.62, 90),
        *_furniture(nature.cactus(), LEAF, (0.1, -0.7, FLOOR + 0.66), 0.38),
        *_furniture(household.chair(), (0.6, 0.38, 0.2), (0.62, -0.62, FLOOR + 0.38), 0.6, 125),
        *_furniture(household.lamp(), (0.95, 0.8, 0.3), (-0.8, 0.7, FLOOR + 0.42), 0.75),
    ]
