"""The true object that a prompt of the corpus asks for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import Tensor

from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import NAMES, SHAPES, Thing, thing


@dataclass(frozen=True)
class Truth:
    """A thing in its look. World axes and units are those of the captions' views: z up, the front towards +x."""

    thing: Thing
    look: str
    table: str = ""  # look of the table that it stands on

    @property
    def radius(self) -> float:
        """Of a ball about the origin that holds the thing."""
        return math.hypot(*(max(-low, high) for low, high in zip(self.thing.low, self.thing.high)))

    def distance(self, points: Tensor) -> Tensor:
        """Returns the signed distance [N] of points [N, 3], negative inside: exact, or less than that."""
        return self.thing.distance(points.T)

    def colour(self, points: Tensor) -> Tensor:
        """Returns the unlit rgb [N, 3] in [0, 1] of the surface nearest to points [N, 3]."""
        return self.thing.colour(points.T, self.look, self.table or LOOKS[0])


def truth(prompt: str) -> Truth | None:
    """Returns what the prompt asks for: "a red mushroom", "a red mushroom on a blue table", whatever else it says.

    Returns None where it does not name one thing of the corpus and its look, or names more than there is a truth for.
    """
    words = re.findall(r"[^\W\d_]+", prompt.lower())
    looks = [word for word in words if word in LOOKS]
    names = [word for word in words if word in NAMES]
    if len(names) == len(looks) == 1:
        return Truth(thing(names[0]), looks[0])
    if len(names) == len(looks) == 2 and names[0] in SHAPES and names[1] == "table" and "on" in words:
        return Truth(thing(names[0], on_table=True), looks[0], looks[1])
    return None
