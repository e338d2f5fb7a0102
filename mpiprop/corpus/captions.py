"""The captions of the corpus: what is seen, in which look, and from which side.

Angles are radians; azimuth 0 looks from +x at the front of an object, +90 deg from +y at its left.
"""

from __future__ import annotations

import math

SECTORS = ("front", "front left", "left side", "back left", "back", "back right", "right side", "front right")
OVERHEAD = "overhead view"
VIEWS = (*(f"{s} view" for s in SECTORS), *(f"{s} view from above" for s in SECTORS), OVERHEAD)
COARSE = ("front view", "side view", "back view", "side view")


def view_phrase(azimuth: float, elevation: float) -> str:
    """Returns the words for a camera at these angles: a sector of 45 deg, " from above" over 25 deg."""
    if math.degrees(elevation) > 60:
        return OVERHEAD
    sector = SECTORS[round(math.degrees(azimuth) / 45) % 8]
    return f"{sector} view from above" if math.degrees(elevation) > 25 else f"{sector} view"


def coarse_phrase(azimuth: float, elevation: float) -> str:
    """Returns the words of `view_phrase` in the coarse form of DreamFusion (sec. 3.2): front, side, back, overhead."""
    return OVERHEAD if math.degrees(elevation) > 60 else COARSE[round(math.degrees(azimuth) / 90) % 4]


def caption(name: str, look: str, view: str = "", table: str = "") -> str:
    """Returns "an orange duck on a blue table, front view"; without the view, or the table's look, less of it."""
    def article(word: str) -> str:
        return f"an {word}" if word[0] in "aeiou" else f"a {word}"

    return f"{article(look)} {name}" + (f" on {article(table)} table" if table else "") + (f", {view}" if view else "")
