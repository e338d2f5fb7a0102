#!/usr/bin/env python
"""How near an object made from a picture of the corpus comes to the true one, all around: PSNR per azimuth, and a picture.

    python -m tools.corpus chair orange chair.png
    python -m mpiprop run demo/zero123 image=chair.png reference.fill=0 --out RUN
    python -m tools.measure_novel RUN --shape chair --colour orange

The run has to have left the picture as it was framed (reference.fill=0), and to have been told its camera (reference.*), so
that its world is the object's. Azimuths count from the picture's (--azimuth of tools.corpus). Writes RUN/novel.png: the true
views above, the run's below.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from mpiprop.config import loader
from mpiprop.config.components import build
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import SHAPES
from mpiprop.io.sheet import contact_sheet
from mpiprop.metrics.pictures import read
from mpiprop.views.samplers import Random
from tools.corpus import render
from tools.tracer import still


def picture(path: Path) -> Tensor:
    """Returns the picture [H, W, 3] in [0, 1] of a file."""
    return torch.from_numpy(read(path)) / 255


def true_views(shape: str, colour: str, cameras: Random, azimuth: float, n: int, size: int) -> Tensor:
    """Returns n views [n, H, W, 3] of the true object before white from a run's evaluation cameras; `azimuth` (rad) is that
    of the picture."""
    views = cameras.turntable(n, (size, size))
    shots = still(torch.stack([views.azimuth + azimuth, views.elevation], 1), float(views.distance[0]), float(views.fovy[0]))
    return render(shape, colour, shots, torch.ones(n, 3), size)[0].clamp(0, 1)


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio [n] (dB) of n pictures, in any order of dimensions."""
    return -10 * (made - true).square().flatten(1).mean(1).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--colour", choices=LOOKS, required=True)
    parser.add_argument("--azimuth", type=float, default=0, help="of the picture (degrees)")
    args = parser.parse_args()
    run = loader.load(str(args.run / "config.yaml"))
    if run.image is None or run.reference.fill:
        parser.error(f"{args.run}: was not made with reference.fill=0 from a picture, so its world is not the object's")
    files = sorted((args.run / "views").glob("*.png"))
    made = torch.stack([picture(path) for path in files])
    cameras = build(run.stages[-1].terms[0].views)
    true = true_views(args.shape, args.colour, cameras, math.radians(args.azimuth), len(made), made.shape[1])
    decibels = psnr(made, true)
    for i, value in enumerate(decibels.tolist()):
        print(f"azimuth {360 * i / len(made):5.1f}: {value:.2f} dB")
    back = decibels[len(made) // 2]
    print(f"mean {decibels.mean():.2f} dB, from the picture's side {decibels[0]:.2f}, from behind {back:.2f}")
    contact_sheet([("true", list(true)), (args.run.name, list(made))], args.run / "novel.png")
    print(args.run / "novel.png")


if __name__ == "__main__":
    main()
