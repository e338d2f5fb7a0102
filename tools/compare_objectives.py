#!/usr/bin/env python
"""Objectives under equal conditions: quality, truth, variance and cost of each, as tables, plots and contact sheets.

    tools/compare_objectives.py tools/comparisons/objectives.yaml --out runs/objectives [--jobs 2] [--report]

The file says which objectives, scenes, prompts and seeds; the records below are its keys. Each combination is a run, one step
after the other; on the first prompts it is also made in a window, which tells T/K. Every gradient has the same size at the
start (`weight`), so that penalties count as much beside each objective. Runs that are done are kept, unfinished ones resumed:
kill it and start it again. --report makes the tables of what is done.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.config import loader  # noqa: E402  (from this checkout)
from mpiprop.config.conversion import convert, key  # noqa: E402
from mpiprop.core.errors import RunError, UserError  # noqa: E402
from mpiprop.core.variance import variances  # noqa: E402
from mpiprop.io.sheet import contact_sheet  # noqa: E402
from mpiprop.report.summary import RunSummary  # noqa: E402
from mpiprop.run import outputs  # noqa: E402
from mpiprop.run.folders import slug  # noqa: E402
from tools import comparing  # noqa: E402
from tools.comparing import QUALITY, Figures, cell, cost, kept, run  # noqa: E402
from tools.gallery import LEAN, choose, views_of  # noqa: E402

TABLES = ({"r_precision": ("R-Precision", "{:.2f}"), **QUALITY},
          {"latent": ("variance, latent", "{:.0f}"), "theta": ("variance, theta", "{:.0f}"), "noise": ("its share", "{:.2f}"),
           "seconds": ("s a step", "{:.3f}"), "predictions": ("predictions", "{:.1f}"), "speed": ("T/K", "{:.2f}")})  # columns
PAIRED = ("iou", "psnr_db")  # measures that are also shown as differences from the first row's


@dataclass(frozen=True)
class SceneKind:
    """What is optimised."""

    config: str = key("configuration whose first stage it is")
    steps: int = key("of a run; schedules are scaled to it", lo=1)
    set: tuple[str, ...] = key("overrides of that configuration, key=value", ())


@dataclass(frozen=True)
class Objective(comparing.Objective):
    """A row of the tables."""

    after: str | None = key("objective whose results it begins with, for one that is a second stage", None)
    share: float = key("of the steps, for one that is a second stage", 1.0, lo=0, hi=1)


@dataclass(frozen=True)
class Comparison:
    """The whole of it."""

    scenes: dict[str, SceneKind] = key("by name")
    objectives: dict[str, Objective] = key("by name, in the order of the rows")
    prompts: int | tuple[str, ...] = key("the prompts, or how many are chosen, every third one a pair held out", 8)
    seeds: tuple[int, ...] = key("of each prompt", (0, 1))
    window: int = key("size of the window that tells T/K", 7, lo=1)
    window_prompts: int = key("how many of the prompts are made in a window, too", 1, lo=0)
    set: tuple[str, ...] = key("overrides of every run, key=value", ())

    @classmethod
    def read(cls, path: Path) -> "Comparison":
        """Raises UserError where the file says what cannot be understood."""
        tree = loader.loads(path.read_text(), str(path))
        guidance = {name: row.pop("guidance", {}) for name, row in tree.get("objectives", {}).items()}
        found = convert(cls, tree, "")
        names = list(found.objectives)
        for i, (name, row) in enumerate(found.objectives.items()):
            if row.after is not None and row.after not in names[:i]:
                raise UserError(f"{path}: objectives.{name}.after: needs the name of a row above it, got {row.after!r}")
            row.guidance.update(guidance[name])
        return found

    @property
    def asked(self) -> list[str]:
        """The prompts."""
        return choose(self.prompts) if isinstance(self.prompts, int) else [*self.prompts]

    def tree(self, scene: SceneKind, row: Objective) -> dict[str, Any]:
        """The configuration of a row's runs: the first stage of the scene's, with another guidance."""
        tree = loader.read(scene.config, scene.set)
        stage = row.of(tree["stages"][0], scene.steps)
        if row.after is not None:
            stage = ended(stage) | {"steps": max(1, round(row.share * scene.steps))}
        return tree | {"stages": [stage]}


def ended(tree: Any) -> Any:
    """`tree` with the last value of each schedule in its place."""
    if isinstance(tree, dict):
        return {name: ended(value) for name, value in tree.items()}
    if isinstance(tree, list) and tree and all(isinstance(knot, list) and len(knot) == 2 for knot in tree):
        return tree[-1][1]
    return [ended(item) for item in tree] if isinstance(tree, list) else tree


@dataclass(frozen=True)
class Place:
    """Where a run is kept."""

    out: Path
    scene: str
    row: str
    prompt: str
    seed: int

    def folder(self, window: bool = False) -> Path:
        """Of the sequential run, or of the one in a window."""
        name = f"{slug(self.prompt)}-{self.seed}{'-window' if window else ''}"
        return self.out / slug(self.scene) / slug(self.row) / name

    def figures(self) -> dict[str, float]:
        """What is known of its runs."""
        return kept(self.folder()) | kept(self.folder(window=True))


def make(comparison: Comparison, out: Path, scene: str, prompt: str, seed: int) -> list[str]:
    """Makes all rows' runs of one scene, prompt and seed, and measures them. Returns what went wrong, a line each."""
    failures = []
    for name, row in comparison.objectives.items():
        place = Place(out, scene, name, prompt, seed)
        overrides = [*LEAN, *comparison.set, *row.set, f"prompt={prompt}", f"seed={seed}"]
        if row.after is not None:
            overrides.append(f"from={Place(out, scene, row.after, prompt, seed).folder()}")
        config = out / slug(scene) / f"{slug(name)}.yaml"
        try:
            run(config, place.folder(), [*overrides, "window.size=1"], partial(quality, row.weight))
            if prompt in comparison.asked[:comparison.window_prompts]:
                run(config, place.folder(window=True), [*overrides, f"window.size={comparison.window}"], cost)
        except (UserError, RunError) as error:
            failures.append(str(error))
            print(error, file=sys.stderr, flush=True)
    return failures


def quality(weight: float, folder: Path) -> Figures:
    """Measures of a finished sequential run: the judge's, those against the true solid, variances over its last steps."""
    averages = outputs.newest(folder)[1].window.x.averages
    theta, latent = averages["theta"], next(values for name, values in averages.items() if name.endswith(".variance"))
    known = [(float(n), value) for n, value in zip(latent[:, 0], variances(latent)) if value is not None]
    variance, = variances(theta)
    return comparing.quality(folder) | {
        "latent": weight ** 2 * sum(n * value for n, value in known) / sum(n for n, _ in known) if known else None,
        "theta": variance, "noise": variance and variance / float(theta[0, 2] / theta[0, 0])}


def table(comparison: Comparison, out: Path, scene: str, columns: Mapping[str, tuple[str, str]]) -> str:
    """The rows of one scene in Markdown: means over prompts and seeds, and the deviation of the seeds' means; differences
    from the first row over pairs of the same prompt and seed, and their standard error."""
    pairs = [(prompt, seed) for prompt in comparison.asked for seed in comparison.seeds]
    found = {row: {pair: Place(out, scene, row, *pair).figures() for pair in pairs} for row in comparison.objectives}
    first, paired = next(iter(found.values())), [name for name in PAIRED if name in columns]
    titles = [title for title, _ in columns.values()] + [f"{columns[name][0]} - first row's" for name in paired]
    lines = ["| objective | " + " | ".join(titles) + " | runs |", "|---" * (len(titles) + 2) + "|"]
    for row, made in found.items():
        cells = [cell([[figures[name] for (_, own), figures in made.items() if own == seed and name in figures]
                       for seed in comparison.seeds], form) for name, (_, form) in columns.items()]
        for name in paired:
            both = [pair for pair in pairs if name in made[pair] and name in first[pair]]
            cells.append(difference([made[pair][name] - first[pair][name] for pair in both], columns[name][1]))
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {sum(map(bool, made.values()))} |")
    return "\n".join(lines)


def difference(values: Sequence[float], form: str) -> str:
    """The mean of differences with its sign, and its standard error."""
    if len(values) < 2:
        return "-"
    mean = fmean(values)
    return f"{'-' if mean < 0 else '+'}{form.format(abs(mean))} ± {form.format(stdev(values) / len(values) ** 0.5)}"


def plot(comparison: Comparison, out: Path, scene: str) -> Path:
    """Draws the running variance of theta's gradient over the steps, and IoU with its spread; the file."""
    from matplotlib import pyplot as plt

    figure, (curves, bars) = plt.subplots(1, 2, figsize=(13, 5), width_ratios=(2, 1), layout="constrained")
    for i, row in enumerate(comparison.objectives):
        places = [Place(out, scene, row, prompt, seed) for prompt in comparison.asked for seed in comparison.seeds]
        places = [place for place in places if place.figures()]
        series = [dict(RunSummary.read(place.folder()).variance("theta").get("theta", ())) for place in places]
        steps = sorted(set.intersection(*map(set, series))) if series else []
        curves.semilogy(steps, [fmean(each[step] for each in series) for step in steps], label=row, color=f"C{i % 10}",
                        linestyle=("-", "--", ":")[i // 10 % 3])
        iou = [value for place in places if (value := place.figures().get("iou")) is not None]
        bars.barh(i, fmean(iou) if iou else 0, xerr=stdev(iou) if len(iou) > 1 else None, color=f"C{i % 10}")
    curves.set(xlabel="step", ylabel="variance of the gradient in theta")
    curves.legend(fontsize="small", ncols=2)
    bars.set(xlabel="IoU with the true solid, and its deviation over runs", yticks=range(len(comparison.objectives)),
             yticklabels=list(comparison.objectives))
    bars.invert_yaxis()
    figure.suptitle(scene)
    file = out / f"{slug(scene)}.png"
    figure.savefig(file, dpi=100)
    plt.close(figure)
    return file


def sheet(comparison: Comparison, out: Path, scene: str) -> Path | None:
    """Draws each row's objects of the first seed, two views of each; the file."""
    rows = []
    for row in comparison.objectives:
        places = [Place(out, scene, row, prompt, comparison.seeds[0]) for prompt in comparison.asked]
        if pictures := [view for place in places if place.figures() for view in views_of(place.folder())[[1, 7]]]:
            rows.append((row, pictures))
    file = out / f"{slug(scene)}-sheet.png"
    if rows:
        contact_sheet(rows, file)
    return file if rows else None


def report(comparison: Comparison, out: Path) -> None:
    """Prints the tables and writes them to out/tables.md, with a plot and a contact sheet for each scene."""
    text = "\n\n".join(part for scene in comparison.scenes
                       for part in (scene, *(table(comparison, out, scene, columns) for columns in TABLES)))
    (out / "tables.md").write_text(text + "\n")
    print(f"\n{text}\n\n{out / 'tables.md'}")
    for scene in comparison.scenes:
        for file in (plot(comparison, out, scene), sheet(comparison, out, scene)):
            print(file or f"{scene}: nothing is done")


def prepare(comparison: Comparison, out: Path) -> None:
    """Writes the configurations, out/SCENE/OBJECTIVE.yaml. Raises UserError where one has a mistake."""
    for scene, kind in comparison.scenes.items():
        (out / slug(scene)).mkdir(parents=True, exist_ok=True)
        for name, row in comparison.objectives.items():
            file = out / slug(scene) / f"{slug(name)}.yaml"
            file.write_text(yaml.safe_dump(comparison.tree(kind, row), sort_keys=False))
            loader.load(str(file), [*comparison.set, *row.set])


def begin(file: Path, out: Path) -> tuple[list[Callable[[], list[str]]], Callable[[], None]]:
    """The tasks of a comparison, one for each scene, prompt and seed, and its report."""
    comparison = Comparison.read(file)
    prepare(comparison, out)
    tasks = [partial(make, comparison, out, scene, prompt, seed)
             for prompt in comparison.asked for seed in comparison.seeds for scene in comparison.scenes]
    return tasks, partial(report, comparison, out)


def main(words: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    return comparing.command(parser, words, begin)


if __name__ == "__main__":
    sys.exit(main())
