#!/usr/bin/env python
"""One LoRA in theta against LoRAs of the workers' own: what the DreamPropeller paper leaves open, at the demo's scale.

    tools/compare_loras.py --out runs/loras [--prompts 3] [--steps 150] [--window 7] [key=value ...]

runs the first stage of demo/prolificdreamer, its schedules scaled to `--steps`, with each policy and prompt, one run after
another, and prints a table: quality as the built-in judge sees it, T/K, evaluations and megabytes moved between ranks a step.
Runs that are done are kept, unfinished ones resumed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.config import loader  # noqa: E402
from mpiprop.config.prompts import read_prompts  # noqa: E402
from mpiprop.core.theta import Layout  # noqa: E402
from mpiprop.io.sheet import contact_sheet  # noqa: E402
from mpiprop.metrics.judge import Judge  # noqa: E402
from mpiprop.metrics.measures import Result, measure  # noqa: E402
from mpiprop.metrics.pictures import pixels  # noqa: E402
from mpiprop.run.stage import Stage  # noqa: E402
from tools.gallery import choose, run, speed, views_of  # noqa: E402

CONFIG = "demo/prolificdreamer"
STEPS = ("steps", "start_step", "update_steps", "ambient_only_steps", "anneal", "densify_every", "densify_from",
         "densify_until", "reset_every")  # keys that count steps


def policies(window: int) -> dict[str, list[str]]:
    """Overrides by policy."""
    several, lora = [f"window.size={window}"], "stages.0.terms.0.guidance.lora"
    return {"shared": several,
            "private": [*several, f"{lora}.loras={window}"],
            "averaged": [*several, f"{lora}.loras={window}", f"{lora}.average_every={2 * window}"]}


def scaled(tree: Any, factor: float) -> Any:
    """`tree` with the steps of all schedules, and those at which a shape changes, times `factor`."""
    if isinstance(tree, dict):
        return {name: round(value * factor) if name in STEPS and value is not None else scaled(value, factor)
                for name, value in tree.items()}
    if isinstance(tree, list) and tree and all(isinstance(knot, list) and len(knot) == 2 for knot in tree):
        return [[round(step * factor), value] for step, value in tree]
    return [scaled(item, factor) for item in tree] if isinstance(tree, list) else tree


def moved(layout: Layout, lanes: int) -> float:
    """Megabytes of an evaluation's theta and gradient, if of several LoRAs so many lanes travel."""
    span, n = layout.groups["lora"], layout.lanes.get("lora", 1)
    left_out = (span.stop - span.start) // n * (n - min(n, lanes))
    return 4e-6 * (layout.L + layout.D - 2 * left_out)


def judged(objects: Sequence[tuple[str, Tensor]], judge: Judge) -> Result:
    """The measures of objects, each a prompt and its views, among all prompts that the built-in judge knows."""
    prompts = read_prompts("builtin")
    return measure([(prompt, judge.features(pixels(views))) for prompt, views in objects], prompts, judge.texts(prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--window", type=int, default=7, help="its size, and the number of LoRAs where there are several")
    parser.add_argument("--out", type=Path, default=Path("runs/loras"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    torch.set_num_threads(1)
    tree = loader.read(CONFIG, args.overrides)
    tree["stages"] = [scaled(tree["stages"][0], args.steps / tree["stages"][0]["steps"])]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "coarse.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    prompts = choose(args.prompts)
    folders = {(prompt, policy): run(str(args.out / "coarse.yaml"), prompt, policy, args.out, [f"prompt={prompt}", *overrides])
               for prompt in prompts for policy, overrides in policies(args.window).items()}

    judge, views = Judge(), {key: views_of(folder) for key, folder in folders.items()}
    print("\n| LoRAs | R-Precision | similarity | T/K | evaluations a step | MB a step | MB a step if only the step's own LoRA "
          "travelled |\n|---|---|---|---|---|---|---|")
    for policy, overrides in policies(args.window).items():
        scores = judged([(prompt, views[prompt, policy]) for prompt in prompts], judge)
        ratio, cost = map(fmean, zip(*(speed(folders[prompt, policy]) for prompt in prompts)))
        layout = Stage(loader.load(str(args.out / "coarse.yaml"), overrides), 0, torch.device("cpu")).scene.layout
        print(f"| {policy} | {scores.r_precision:.3f} | {scores.similarity:.3f} | {ratio:.2f} | {cost:.2f} | "
              f"{cost * moved(layout, layout.lanes.get('lora', 1)):.2f} | {cost * moved(layout, 1):.2f} |")
    contact_sheet([(f"{prompt}: {policy}", list(views[prompt, policy][::2])) for prompt in prompts
                   for policy in policies(args.window)], args.out / "sheet.png")
    print(args.out / "sheet.png")


if __name__ == "__main__":
    main()
