#!/usr/bin/env python
"""A contact sheet of the true objects of the corpus, each from six sides, on a table, and in the three materials.

    python -m tools.show_corpus OUT.png [NAME ...] [--size 96]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from mpiprop.corpus.colours import COLOURS, MATERIALS, matrix
from mpiprop.corpus.objects import NAMES, SCENES
from mpiprop.io.sheet import contact_sheet
from tools.dataset import draw_inside, tracer_of
from tools.tracer import Shots, still

SIDES = ((0, 10), (45, 20), (90, 10), (180, 10), (-60, 30), (20, 72))  # azimuth and elevation (degrees)


def inside(count: int) -> Shots:
    """Returns cameras at the corners and the sides of a scene's middle, looking through it."""
    shots = vars(draw_inside(count, torch.Generator().manual_seed(0)))
    turn = torch.arange(count) * 2 * math.pi / count
    fixed = {"azimuth": turn, "elevation": torch.full_like(turn, 0.14), "distance": torch.full_like(turn, 0.45),
             "fovy": torch.full_like(turn, 1.4), "centre": torch.zeros(count, 3)}
    return Shots(**(shots | fixed))


def pictures(name: str, size: int) -> tuple[str, list[Tensor]]:
    """Returns a label and the views of what bears a name, in one of the colours and in the materials."""
    look = [*COLOURS][7 * NAMES.index(name) % len(COLOURS)]
    if name in SCENES:
        views = tracer_of(name, False).trace(inside(10), size)
        return f"{look} {name}", list(views.over(matrix(look)[None], torch.ones(3)))
    alone = tracer_of(name, False).trace(still(torch.deg2rad(torch.tensor(SIDES)), 1.8, 0.75), size)
    table = tracer_of(name, True).trace(still(torch.deg2rad(torch.tensor([[35.0, 20.0]])), 1.8, 0.75), size)
    white = torch.ones(3)
    made = [*alone.over(matrix(look)[None], white), table.over(matrix(look)[None], white, matrix("brown")[None])[0]]
    return f"{look} {name}", made + [alone.over(matrix(material)[None], white)[1] for material in MATERIALS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all unless given: {', '.join(NAMES)}")
    parser.add_argument("--size", type=int, default=96, help="height and width of a view, pixels")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: not in the corpus, which has {', '.join(NAMES)}")
    rows = [pictures(name, args.size) for name in args.names or NAMES]
    contact_sheet(rows, args.out, abreast=2)
    print(f"{args.out}: {len(rows)} rows")


if __name__ == "__main__":
    main()
