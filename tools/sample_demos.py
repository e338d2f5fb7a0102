#!/usr/bin/env python
"""What the demos make of prompts drawn at random: one contact sheet with all of them, none left out.

    tools/sample_demos.py --out runs/sample [--prompts 40] [--seed 0] [--jobs 2] [key=value ...]

The demos take turns; object and look are drawn from all that the built-in prior knows, pairs that were held out included. A
demo that starts from a picture is shown one of the true object. Runs that are done are kept, unfinished ones resumed: it can be
stopped and started again.
"""

import argparse
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.config import loader  # noqa: E402  (from this checkout)
from mpiprop.config.prompts import read_prompts  # noqa: E402
from mpiprop.io.sheet import contact_sheet  # noqa: E402
from mpiprop.metrics.judge import Judge  # noqa: E402
from tools.gallery import judged, pictured, run, views_of  # noqa: E402

AZIMUTH = 30  # of pictures to start from, degrees
SHOWN = (1, 4, 8)  # of twelve views all around


def demos() -> list[str]:
    """The names of the demos that make one object."""
    names = ["demo", *(f"demo/{file.stem}" for file in sorted((loader.CONFIGS / "demo").glob("*.yaml")))]
    return [name for name in names if loader.read(name).get("prompts") is None and "scene" not in name]


def draw(n: int, seed: int) -> list[tuple[str, str]]:
    """n pairs of a demo and a prompt."""
    names, objects = demos(), [*read_prompts("builtin", "train"), *read_prompts("builtin", "val")]
    rng = random.Random(seed)
    return [(names[i % len(names)], rng.choice(objects)) for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=40, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/sample"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    def make(name: str, prompt: str) -> Path:
        return run(name, prompt, name, args.out, [*pictured(loader.load(name), prompt, AZIMUTH, args.out), *args.overrides])

    pairs = draw(args.prompts, args.seed)
    with ThreadPoolExecutor(args.jobs) as pool:
        views = [views_of(folder) for folder in pool.map(make, *zip(*pairs))]
    scores = judged([(prompt, some) for (_, prompt), some in zip(pairs, views)], Judge())
    rows = []
    for (name, prompt), some, score in zip(pairs, views, scores.objects):
        print(f"{name}: {prompt}: R-Precision {score.r_precision:.2f}, similarity {score.similarity:.3f}")
        rows.append((f"{name}: {prompt}", [some[i] for i in SHOWN]))
    print(f"all {len(pairs)}: R-Precision {scores.r_precision:.3f}, similarity {scores.similarity:.3f}")
    contact_sheet(rows, args.out / "sheet.png", abreast=4)
    print(args.out / "sheet.png")


if __name__ == "__main__":
    main()
