#!/usr/bin/env python
"""What the demos make of prompts drawn at random, one step after the other and in a window: a table and sheets of all objects.

    tools/gallery.py --out runs/gallery [--prompts 40] [--config demo/asd ...] [--jobs 2] [--window-only] [--set key=value ...]

The demos (or --config) take turns; object and look are drawn from all that the built-in prior knows, pairs that were held out
included. A configuration that starts from a picture is shown one of the true object. What is made is judged as `mpiprop
evaluate --truth` does. Runs that are done are kept, unfinished ones resumed: it can be stopped and started again.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.cli import evaluation  # noqa: E402  (from this checkout)
from mpiprop.cli.parser import parsers  # noqa: E402
from mpiprop.config import loader  # noqa: E402
from mpiprop.config.prompts import read_prompts  # noqa: E402
from mpiprop.config.schema import Run  # noqa: E402
from mpiprop.corpus.captions import caption  # noqa: E402
from mpiprop.corpus.truth import truth  # noqa: E402
from mpiprop.io.sheet import contact_sheet  # noqa: E402
from mpiprop.metrics.measures import Score  # noqa: E402
from mpiprop.metrics.pictures import read  # noqa: E402
from mpiprop.metrics.summary import TRUE_COLUMNS, true_cells  # noqa: E402
from mpiprop.metrics.truth import Likeness  # noqa: E402
from mpiprop.priors import vocabulary  # noqa: E402
from mpiprop.run import folders  # noqa: E402
from tools.corpus import photograph  # noqa: E402

METHODS = {"window 7": ["window.size=7"], "sequential": ["window.size=1"]}
AZIMUTH = 30  # of pictures to start from, degrees
SHOWN = (0, 3, 6, 9)  # of twelve views all around: front, sides and back
LEAN = ["preview={every_s: 1.0e9, size: 96}",  # at stages' ends alone
        "turntable.frames=2", "mesh.resolution=48", "mesh.texture=0"]


def choose(n: int) -> list[str]:
    """n prompts for comparisons: shapes in turn, colours in turn, every third pair held out."""
    words = json.loads(vocabulary.FILE.read_text())
    shapes = [shape for shape in words["shapes"] if shape not in words["scenes"]]
    colours, held_out = words["colours"], words["held_out"]
    chosen = []
    for i in range(n):
        shape = shapes[i % len(shapes)]
        pool = held_out[shape] if i % 3 == 2 else [colour for colour in colours if colour not in held_out[shape]]
        colour = pool[(i // len(shapes) + 3 * (i % len(shapes))) % len(pool)]
        chosen.append(caption(shape, colour))
    return chosen


def pictured(run: Run, prompt: str, azimuth: float, out: Path) -> list[str]:
    """Overrides that show a run a picture of the prompt's object, which is made where there is none."""
    if run.reads_prompt:
        return [f"prompt={prompt}"]
    _, colour, shape = prompt.split()
    path, told = out / f"{colour}-{shape}-{azimuth:g}.png", run.reference
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        photograph(shape, colour, path, azimuth, told.elevation_deg, told.distance, told.fovy_deg)
    return [f"image={path}", f"prompt={prompt}", "reference.fill=0"]


def run(name: str, prompt: str, method: str, out: Path, overrides: list[str]) -> Path:
    """The folder of one finished run, in one thread. Raises where the folder holds a run of another configuration."""
    folder = out / method.replace(" ", "") / prompt.replace(" ", "-")
    command = [sys.executable, "-m", "mpiprop", "run", name, *LEAN, *overrides, "--out", str(folder), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # one that is done says so at once
    print(f"{method}: {prompt}", flush=True)
    return folder


def views_of(folder: Path) -> Tensor:
    """The views [n, H, W, 3] that a finished run left."""
    return torch.stack([torch.from_numpy(read(path)) / 255 for path in sorted((folder / "views").glob("*.png"))])


def evaluated(folder: Path, true: bool = True) -> tuple[Score, Likeness | None]:
    """What `mpiprop evaluate`, with `true` --truth, finds of a run; no likeness where the corpus does not have the prompt's
    object."""
    options = ["--truth"] if true and truth(folders.configured(folder).prompt) else []
    found = evaluation.evaluate(parsers()["evaluate"].read([str(folder), *options]))
    return found.result.objects[0], found.truths[0] if found.truths else None


def speed(folder: Path) -> tuple[float, float]:
    """T/K of a finished run and its evaluations a step, over all stages."""
    slides = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    T = sum(slide["stride"] for slide in slides)
    return T / len(slides), sum(slide["evaluations"] for slide in slides) / T


@dataclass(frozen=True)
class Made:
    """One finished run and what it is worth."""

    folder: Path
    score: Score
    like: Likeness | None
    speed: tuple[float, float]  # T/K, evaluations a step

    @classmethod
    def of(cls, folder: Path) -> "Made":
        return cls(folder, *evaluated(folder), speed(folder))


def demos() -> list[str]:
    """The names of the demos that make one object, without a generator."""
    names = ["demo", *(f"demo/{file.stem}" for file in sorted((loader.CONFIGS / "demo").glob("*.yaml")))]
    return [name for name in names if not {"prompts", "from"} & loader.read(name).keys() and "scene" not in name]


def draw(n: int, names: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """n pairs of a configuration, in turn, and a prompt of an object, drawn."""
    objects = [*read_prompts("builtin", "train"), *read_prompts("builtin", "val")]
    rng = random.Random(seed)
    return [(names[i % len(names)], rng.choice(objects)) for i in range(n)]


def row(title: str, made: Sequence[dict[str, Made]]) -> str:
    """Means of some prompts: of each method in turn, and T/K and evaluations a step of the window."""
    methods = [[each[method] for each in made] for method in made[0]]
    cells = [" / ".join(f"{fmean(one.score.r_precision for one in some):.2f}" for some in methods),
             " / ".join(f"{fmean(one.score.similarity for one in some):.3f}" for some in methods),
             *map(" / ".join, zip(*(true_cells([one.like for one in some if one.like]) for some in methods))),
             *(f"{fmean(values):.2f}" for values in zip(*(one.speed for one in methods[0])))]
    return f"| {title} | {len(made)} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=demos(), help="configurations (default: the demos of one object)")
    parser.add_argument("--prompts", type=int, default=40, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--window-only", action="store_true", help="make no sequential runs")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of every run")
    args = parser.parse_args()

    def make(name: str, prompt: str, method: str) -> Path:
        where = f"{name}/{method}" if method == "sequential" else name
        shown = pictured(loader.load(name), prompt, AZIMUTH, args.out)
        return run(name, prompt, where, args.out, [*METHODS[method], *shown, *args.set])

    pairs, methods = draw(args.prompts, args.config, args.seed), [*METHODS][:1 if args.window_only else None]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {(pair, method): pool.submit(make, *pair, method) for method in methods for pair in pairs}
        done = {key: future.result() for key, future in runs.items()}
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as judges:
        found = dict(zip(done, judges.map(Made.of, done.values())))
    made = {pair: {method: found[pair, method] for method in methods} for pair in pairs}
    how = " / ".join(methods)
    print(f"Cells of two: {how}\n\n| configuration | prompts | R-Precision | similarity | " + " | ".join(TRUE_COLUMNS)
          + " | T/K | evaluations a step |\n" + "|---" * (6 + len(TRUE_COLUMNS)) + "|")
    held_out = set(read_prompts("builtin", "val"))
    for name, prompt in pairs:
        print(row(f"{name}: {prompt}{' (held out)' if prompt in held_out else ''}", [made[name, prompt]]))
    kinds = [(f"`{name}`", [each for pair, each in made.items() if pair[0] == name]) for name in args.config]
    kinds += [(title, [each for pair, each in made.items() if (pair[1] in held_out) == new])
              for title, new in (("seen pairs", False), ("held-out pairs", True))]
    for title, some in [*kinds, ("**all**", list(made.values()))]:
        if some:
            print(row(title, some))
    for method in methods:
        sheet = args.out / f"{method.replace(' ', '')}.png"
        contact_sheet([(f"{name}: {prompt}", [views_of(each[method].folder)[i] for i in SHOWN])
                       for (name, prompt), each in made.items()], sheet, abreast=4)
        print(sheet)


if __name__ == "__main__":
    main()
