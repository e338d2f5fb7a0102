"""Views of the corpus' things in their looks.

    python -m tools.corpus NAME LOOK OUT.png [--azimuth 0] [--elevation 15] [--distance 1.8] [--fovy 49.1] [--size 256]

writes one view (degrees) with its exact opacity, to make objects from. Conventions are those of `tools.tracer`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from mpiprop.corpus.captions import caption
from mpiprop.corpus.colours import LOOKS, matrix
from mpiprop.corpus.objects import NAMES
from tools.dataset import tracer_of
from tools.tracer import Layers, Shots, still


def trace(name: str, shots: Shots, size: int = 64) -> Layers:
    """Returns the layers of B views of `name`, alone."""
    return tracer_of(name, False).trace(shots, size)


def render(name: str, look: str, shots: Shots, background: Tensor, size: int = 64) -> tuple[Tensor, Tensor]:
    """Returns rgb [B, H, W, 3] and alpha [B, H, W, 1] of `name` in `look`; background [B, 3] in [0, 1]."""
    layers = trace(name, shots, size)
    return layers.over(matrix(look)[None], background[:, None, None]), layers.alpha


def photograph(name: str, look: str, path: Path, azimuth: float, elevation: float, distance: float, fovy: float,
               size: int = 256) -> None:
    """Writes a view of an object as RGBA; angles in degrees."""
    from mpiprop.io.pictures import png

    angles = torch.deg2rad(torch.tensor([[azimuth, elevation]], dtype=torch.float32))
    layers = trace(name, still(angles, distance, math.radians(fovy)), size)
    premultiplied = layers.over(matrix(look)[None], torch.zeros(3))
    png(torch.cat([premultiplied / layers.alpha.clamp_min(1e-6), layers.alpha], -1)[0], path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.corpus", description="A view of an object with its exact opacity, a "
                                     "picture to make objects from.", epilog="example: python -m tools.corpus chair orange "
                                     "chair.png --azimuth 30", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("look", choices=LOOKS, metavar="LOOK", help=", ".join(LOOKS))
    parser.add_argument("out", type=Path, metavar="OUT.png", help="where the picture goes")
    for name, default, text in (("azimuth", 0, "side that it is seen from, degrees, 0 is the front"),
                                ("elevation", 15, "height that it is seen from, degrees above the object's"),
                                ("distance", 1.8, "distance of the camera, world units (objects are about 1 across)"),
                                ("fovy", 49.1, "vertical field of view, degrees")):
        parser.add_argument(f"--{name}", type=float, default=default, help=text)
    parser.add_argument("--size", type=int, default=256, help="height and width, pixels")
    args = parser.parse_args()
    photograph(args.name, args.look, args.out, args.azimuth, args.elevation, args.distance, args.fovy, args.size)
    print(f"{args.out}: {caption(args.name, args.look)}, {args.size} x {args.size} pixels")


if __name__ == "__main__":
    main()
