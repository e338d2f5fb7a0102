#!/usr/bin/env python
"""The demo over many prompts, sequential and with a window, judged: the table and the contact sheet of configs/README.md.

    tools/gallery.py --out runs/gallery [--config demo] [--prompts 24] [--jobs 2] [key=value ...]

Two thirds of the prompts are pairs of colour and shape that the built-in prior was trained on, one third are pairs held out.
A configuration that starts from a picture is shown one of each prompt's object, taken from --azimuth, and what it makes is also
compared with the true object, all around. Runs that are done are kept, unfinished ones resumed: it can be stopped and started
again.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from mpiprop.config.components import build  # noqa: E402
from mpiprop.corpus.captions import caption  # noqa: E402
from mpiprop.corpus.truth import truth  # noqa: E402
from mpiprop.io.sheet import contact_sheet  # noqa: E402
from mpiprop.metrics.judge import Judge  # noqa: E402
from mpiprop.metrics.measures import Result, Score, measure  # noqa: E402
from mpiprop.metrics.pictures import pixels  # noqa: E402
from mpiprop.metrics.summary import TRUE_COLUMNS, true_cells  # noqa: E402
from mpiprop.metrics.truth import Likeness  # noqa: E402
from mpiprop.priors import vocabulary  # noqa: E402
from mpiprop.run import folders  # noqa: E402
from tools.corpus import photograph  # noqa: E402
from tools.measure_novel import picture, psnr, true_views  # noqa: E402

METHODS = {"sequential": ["window.size=1"], "window 7": ["window.size=7"]}
PREVIEW = 96  # pixels
LEAN = [f"preview={{every_s: 1.0e9, size: {PREVIEW}}}",  # at stages' ends alone
        "turntable.frames=2", "mesh.resolution=48", "mesh.texture=0"]


def choose(n: int) -> list[tuple[str, bool]]:
    """n prompts and whether each is held out: shapes in turn, colours in turn, every third one held out."""
    words = json.loads(vocabulary.FILE.read_text())
    shapes = [shape for shape in words["shapes"] if shape not in words["scenes"]]
    colours, held_out = words["colours"], words["held_out"]
    chosen = []
    for i in range(n):
        shape, new = shapes[i % len(shapes)], i % 3 == 2
        pool = held_out[shape] if new else [colour for colour in colours if colour not in held_out[shape]]
        colour = pool[(i // len(shapes) + 3 * (i % len(shapes))) % len(pool)]
        chosen.append((caption(shape, colour), new))
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
    return torch.stack([picture(path) for path in sorted((folder / "views").glob("*.png"))])


def judged(objects: Sequence[tuple[str, Tensor]], judge: Judge) -> Result:
    """The measures of objects, each a prompt and its views, among all prompts that the built-in judge knows."""
    prompts = read_prompts("builtin")
    return measure([(prompt, judge.features(pixels(views))) for prompt, views in objects], prompts, judge.texts(prompts))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--prompts", type=int, default=24, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--azimuth", type=float, default=30, help="of pictures to start from (degrees)")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    prompts, configured = choose(args.prompts), loader.load(args.config)
    with ThreadPoolExecutor(args.jobs) as pool:
        made = {(prompt, method): pool.submit(run, args.config, prompt, method, args.out, [
                    *METHODS[method], *pictured(configured, prompt, args.azimuth, args.out), *args.overrides])
                for prompt, _ in prompts for method in METHODS}
        folders = {key: future.result() for key, future in made.items()}

    torch.set_num_threads(1)
    judge = Judge()
    views = {key: views_of(folder) for key, folder in folders.items()}
    scores = {method: judged([(prompt, views[prompt, method]) for prompt, _ in prompts], judge) for method in METHODS}
    speeds = [speed(folders[prompt, "window 7"]) for prompt, _ in prompts]

    likes = {key: evaluated(folder)[1] for key, folder in folders.items()}
    print("\n| prompt | held out | R-Precision sequential | window 7 | similarity sequential | window 7 | "
          + " | ".join(f"{name}, sequential / window 7" for name in TRUE_COLUMNS) + " | T/K | evaluations a step |")
    print("|---" * (8 + len(TRUE_COLUMNS)) + "|")
    one, seven = (scores[method].objects for method in METHODS)
    for (prompt, new), a, b, (ratio, cost) in zip(prompts, one, seven, speeds):
        found = against([[likes[prompt, method]] for method in METHODS])
        print(f"| {prompt} | {'yes' if new else ''} | {a.r_precision:.2f} | {b.r_precision:.2f} | {a.similarity:.3f} | "
              f"{b.similarity:.3f} | {found} | {ratio:.2f} | {cost:.2f} |")
    ratio, cost = map(fmean, zip(*speeds))
    a, b = (scores[method] for method in METHODS)
    found = against([[likes[prompt, method] for prompt, _ in prompts] for method in METHODS])
    print(f"| **all {len(prompts)}** | {sum(new for _, new in prompts)} | **{a.r_precision:.3f}** | **{b.r_precision:.3f}** | "
          f"{a.similarity:.3f} | {b.similarity:.3f} | {found} | **{ratio:.2f}** | {cost:.2f} |")
    for held in sorted({new for _, new in prompts}):
        subset = [[s.r_precision for (_, new), s in zip(prompts, scores[method].objects) if new is held] for method in METHODS]
        print(f"{'held-out' if held else 'trained'} pairs: sequential {fmean(subset[0]):.3f}, window 7 {fmean(subset[1]):.3f}")
    contact_sheet([(f"{prompt}{' (held out)' if new else ''}: sequential, then window 7",
                    [*views[prompt, "sequential"][::2], *views[prompt, "window 7"][::2]]) for prompt, new in prompts],
                  args.out / "sheet.png")
    print(args.out / "sheet.png")
    if not configured.reads_prompt:
        novel(configured, [prompt for prompt, _ in prompts], views, math.radians(args.azimuth), args.out)
    if len(stages := [stage.name for stage in configured.stages]) > 1:
        rows = [(f"{prompt}: {', '.join(stages)}",
                 [view for stage in stages for view in _end(folders[prompt, "window 7"], stage)]) for prompt, _ in prompts]
        contact_sheet(rows, args.out / "stages.png")
        print(args.out / "stages.png")


def against(likes: Sequence[Sequence[Likeness | None]]) -> str:
    """Cells of the means of each method's objects against the true solids, a dash where there are none."""
    cells = zip(*(true_cells([like for like in some if like is not None]) for some in likes))
    return " | ".join(" / ".join(pair) for pair in cells)


def novel(run: Run, prompts: list[str], views: dict[tuple[str, str], Tensor], azimuth: float, out: Path) -> None:
    """Prints the table of PSNR (dB) against the true objects and writes out/novel.png; `azimuth` (rad) of the pictures."""
    cameras, rows, means = build(run.stages[-1].terms[0].views), [], {method: [] for method in METHODS}
    print("\n| prompt | all around, sequential | window 7 | the picture's side | window 7 | behind | window 7 |\n"
          "|---|---|---|---|---|---|---|")
    for prompt in prompts:
        _, colour, shape = prompt.split()
        n, size = views[prompt, "sequential"].shape[:2]
        true = true_views(shape, colour, cameras, azimuth, n, size)
        found = [psnr(views[prompt, method], true) for method in METHODS]
        parts = zip(*((each.mean(), each[0], each[n // 2]) for each in found))
        print(f"| {prompt} | " + " | ".join(f"{value:.1f}" for part in parts for value in part) + " |")
        for method, each in zip(METHODS, found):
            means[method].append(float(each.mean()))
        rows.append((f"{prompt}: true, sequential, window 7",
                     [*true[::2], *views[prompt, "sequential"][::2], *views[prompt, "window 7"][::2]]))
    print("mean, dB: " + ", ".join(f"{method} {fmean(values):.2f}" for method, values in means.items()))
    contact_sheet(rows, out / "novel.png")
    print(out / "novel.png")


def _end(folder: Path, stage: str) -> Sequence[Tensor]:
    """Views of a run as a stage left it."""
    (preview,) = (folder / "previews").glob(f"{stage}-*.png")
    return picture(preview).split(PREVIEW, dim=1)


if __name__ == "__main__":
    main()
