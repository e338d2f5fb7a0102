#!/usr/bin/env python
"""Generators under equal conditions: networks and objectives, training over ranks, and the number of prompts.

    tools/compare_generators.py tools/comparisons/generators.yaml --out runs/generators [--jobs 2] [--report]

The file's keys are the records below. Networks are trained on pairs of shape and look of the built-in corpus, one step after
the other, and make objects of some of these pairs and of unseen ones: pairs that no model was shown, whose shape and look
each were among those trained on. Runs that are done are kept, unfinished ones resumed: kill it and start it again. --report
makes the tables of what is done.

Ranks are emulated: a training runs in one process, and its wall-clock on so many workers is computed from metrics.jsonl. Each
slide hands out its evaluations, or their shards, at once, and takes as long as the worker with most of them. Assumed: every
worker is as fast as this process, each evaluation takes the median time, and nothing else takes any (no messages, no optimiser
steps). Time-parallel training has a window of as many steps as there are workers. Data-parallel training takes one step after
another, its batch in shards: that many times the batch, or the same batch, each for as many steps as need the evaluations of
the time-parallel training, and for as many as take its wall-clock.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.config import loader  # noqa: E402  (from this checkout)
from mpiprop.io.pictures import png  # noqa: E402
from mpiprop.io.sheet import contact_sheet  # noqa: E402
from mpiprop.run import outputs  # noqa: E402
from mpiprop.run.folders import slug  # noqa: E402
from tools import comparing  # noqa: E402
from tools.comparing import QUALITY, Figures, attempt, cost, keep, kept, quality, run  # noqa: E402
from tools.gallery import speed, views_of  # noqa: E402
from tools.generators import Comparison, Training, spent  # noqa: E402

PARTS = ("seen", "unseen")
JUDGED = {"r_precision": ("R@1", "{:.2f}"), **QUALITY}
COSTS = {"seconds": ("s a step", "{:.2f}"), "megabytes": ("MB an evaluation", "{:.2f}"), "speed": ("T/K", "{:.2f}")}
ALONE = "each alone"
SHOWN = 1  # the view on contact sheets


def train(comparison: Comparison, out: Path, training: Training, measured: Callable[[Path], Figures] | None = None) -> None:
    """Trains a generator and measures what it makes, unless that is done."""
    folder = training.folder(out)
    config = written(comparison.tree(training), folder)
    run(config, folder, [*comparison.objectives[training.objective].set], measured or partial(judge, comparison, training))


def written(tree: dict[str, Any], folder: Path) -> Path:
    """The file of a run's configuration, beside its folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.yaml")
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def judge(comparison: Comparison, training: Training, folder: Path) -> Figures:
    """Makes and measures objects of a training's prompts; the means of each part."""
    asked = comparison.asked(training.prompts)
    for prompt in (prompt for some in asked.values() for prompt in some):
        place = made(folder, prompt)
        if not kept(place):
            show(folder, prompt, place)
            keep(place, quality(place, comparison.truth))
    return means({part: [made(folder, prompt) for prompt in some] for part, some in asked.items()})


def made(folder: Path, prompt: str) -> Path:
    """The folder of the object that a training's generator makes of a prompt."""
    return folder / "objects" / slug(prompt)


def show(folder: Path, prompt: str, place: Path) -> None:
    """Puts into `place` what a run of that prompt alone leaves for `evaluate`: its configuration, its state and views."""
    (place / "views").mkdir(parents=True, exist_ok=True)
    (place / "config.yaml").write_text(loader.resolved(loader.load(str(folder / "config.yaml"), [f"prompt={prompt}"])))
    if not (place / "window.h5").is_symlink():
        (place / "window.h5").symlink_to("../../window.h5")
    stage, found = outputs.newest(place)
    theta, n, size = found.window.x.theta, outputs.VIEWS, stage.run.turntable.size
    views = stage.views[0].turntable(n, (size, size)).farther(outputs.farther(stage, theta, n))
    for i, picture in enumerate(outputs.frames(stage, theta, views)):
        png(picture, place / "views" / f"{i:03d}.png")


def make_alone(comparison: Comparison, out: Path, prompt: str, brief: bool = False) -> None:
    """Makes one prompt by a run of its own, and measures it, or in `brief` what it costs."""
    folder, steps, window = lone(out, prompt), comparison.alone.steps, 1
    if brief:
        steps, window = comparison.window_steps, comparison.window
    run(written(comparison.lone(steps), folder), folder, [f"prompt={prompt}", f"window.size={window}"],
        cost if brief else partial(quality, true=comparison.truth))


def lone(out: Path, prompt: str) -> Path:
    return out / slug(ALONE) / slug(prompt)


def make_parallel(comparison: Comparison, out: Path) -> None:
    """Trains over emulated ranks."""
    for _, training in comparison.methods(out):
        train(comparison, out, training)


def means(folders: Mapping[str, Sequence[Path]]) -> Figures:
    """The means of what is known of objects, by measure and part ("iou seen")."""
    found = {part: [kept(folder) for folder in some] for part, some in folders.items()}
    return {f"{name} {part}": fmean(values) if (values := [each[name] for each in some if name in each]) else None
            for name in JUDGED for part, some in found.items()}


@dataclass(frozen=True)
class Row:
    """A row of a table: its first cells, its objects by part, and what a contact sheet calls it."""

    told: tuple[str, ...]
    objects: dict[str, list[Path]]
    label: str

    @property
    def cells(self) -> list[str]:
        found, counts = means(self.objects), [str(sum(map(bool, map(kept, self.objects[part])))) for part in PARTS]
        judged = [["-" if (value := found[f"{name} {part}"]) is None else form.format(value) for part in PARTS]
                  for name, (_, form) in JUDGED.items()]
        return [*self.told, *map(" / ".join, [*judged, counts])]


@dataclass(frozen=True)
class Table:
    """Rows under the titles of their first cells."""

    name: str
    titles: tuple[str, ...]
    rows: list[Row]

    def __str__(self) -> str:
        titles = [*self.titles, *(title for title, _ in JUDGED.values()), "objects"]
        return "\n".join(f"| {' | '.join(cells)} |"
                         for cells in (titles, ["---"] * len(titles), *(row.cells for row in self.rows)))

    def sheet(self, out: Path) -> Path | None:
        """Draws a view of each object, seen ones first; the file."""
        rows = [(row.label, pictures) for row in self.rows if (pictures := [
            views_of(folder)[SHOWN] for part in PARTS for folder in row.objects[part] if kept(folder)])]
        if not rows:
            return None
        contact_sheet(rows, file := out / f"{slug(self.name)}.png")
        return file


def row(comparison: Comparison, out: Path, training: Training, told: Sequence[str], label: str) -> Row:
    """The row of a training."""
    folder, asked = training.folder(out), comparison.asked(training.prompts)
    return Row(tuple(told), {part: [made(folder, prompt) for prompt in some] for part, some in asked.items()}, label)


def generators(comparison: Comparison, out: Path) -> Table:
    """Every network by every objective, and prompts each alone."""
    def costs(folder: Path) -> list[str]:
        found = kept(folder)
        return [form.format(found[name]) if name in found else "-" for name, (_, form) in COSTS.items()]
    rows = [row(comparison, out, training, [training.network, training.objective, *costs(comparison.brief(training).folder(
        out / "cost"))], f"{training.network}, {training.objective}") for training in comparison.grid]
    if comparison.alone is not None:
        asked = comparison.asked(comparison.prompts)
        rows.append(Row((ALONE, comparison.alone.config, *costs(lone(out / "cost", asked["seen"][0]))),
                        {part: [lone(out, prompt) for prompt in some] for part, some in asked.items()}, ALONE))
    return Table("generators", ("network", "objective", *(title for title, _ in COSTS.values())), rows)


def parallel(comparison: Comparison, out: Path) -> tuple[Table, list[tuple[str, float, Row]]]:
    """Trainings over ranks, and for a plot their names, wall-clocks (s) and rows."""
    rows, points = [], []
    if comparison.parallel is not None:
        ways = [("one worker", comparison.base, 1)], ((*way, comparison.parallel.workers) for way in comparison.methods(out))
        for name, training, workers in chain(*(takewhile(lambda way: kept(way[1].folder(out)), some) for some in ways)):
            evaluations, seconds = spent(training.folder(out), workers, training.shards)
            T_K, T = speed(training.folder(out))[0], training.steps
            rows.append(row(comparison, out, training, [name, f"{T}", f"{round(T / T_K)}", f"{T_K:.2f}",
                                                        f"{evaluations * training.batch}", f"{seconds:.1f}"], name))
            points.append((name, seconds, rows[-1]))
    return Table("training over ranks", ("training", "steps", "slides", "T/K", "evaluations", "wall-clock (s)"), rows), points


def scaling(comparison: Comparison, out: Path) -> Table:
    """One network on ever more prompts."""
    rows = [row(comparison, out, training, [f"{training.prompts}"], f"{training.prompts} prompts")
            for training in comparison.counts]
    return Table("number of prompts", ("prompts",), rows)


def plot(counts: Table, points: Sequence[tuple[str, float, Row]], file: Path) -> None:
    """Draws R@1, seen and unseen, against the number of prompts and against wall-clock."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for part, style in zip(PARTS, ("o-", "o--")):
        known = [(int(row.told[0]), value) for row in counts.rows
                 if (value := means(row.objects)[f"r_precision {part}"]) is not None]
        left.semilogx(*zip(*known) if known else ((), ()), style, label=part)
    counted = [row.told[0] for row in counts.rows]
    left.set_xticks([int(n) for n in counted], counted)
    left.minorticks_off()
    left.set(xlabel="prompts trained on", ylabel="R@1", ylim=(-0.05, 1.05))
    left.legend()
    for i, (name, seconds, row) in enumerate(points):
        for part, fill in zip(PARTS, ("full", "none")):
            if (value := means(row.objects)[f"r_precision {part}"]) is not None:
                right.plot(seconds, value, "o", color=f"C{i}", fillstyle=fill, label=name if part == "seen" else None)
    right.set(xlabel="wall-clock (s); full: seen, hollow: unseen", ylabel="R@1", ylim=(-0.05, 1.05), xscale="log")
    if points:
        right.legend(fontsize="small")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def report(comparison: Comparison, out: Path) -> None:
    """Prints the tables and writes them to out/tables.md, with contact sheets and a plot."""
    over_ranks, points = parallel(comparison, out)
    tables = [generators(comparison, out), over_ranks, counts := scaling(comparison, out)]
    text = "\n\n".join(f"{table.name} (seen / unseen)\n\n{table}" for table in tables if table.rows)
    for part, prompts in comparison.asked(comparison.prompts).items():
        text += f"\n\n{part}: {', '.join(prompts)}"
    (out / "tables.md").write_text(f"{text}\n")
    plot(counts, points, out / "curves.png")
    sheets = [file for table in tables if (file := table.sheet(out))]
    print(f"\n{text}\n", *(out / "tables.md", out / "curves.png", *sheets), sep="\n")


def begin(file: Path, out: Path) -> tuple[list[Callable[[], list[str]]], Callable[[], None]]:
    """The tasks of a comparison, and its report. Raises UserError where a configuration has a mistake."""
    comparison = Comparison.read(file)
    out.mkdir(parents=True, exist_ok=True)
    over_ranks = comparison.parallel is not None
    trainings = list(dict.fromkeys([*comparison.grid, *([comparison.base] if over_ranks else []), *comparison.counts]))
    for training in trainings:
        config, row = written(comparison.tree(training), training.folder(out)), comparison.objectives[training.objective]
        loader.load(str(config), row.set)
    tasks = [partial(train, comparison, out, training) for training in trainings]
    tasks += [partial(train, comparison, out / "cost", comparison.brief(training), cost) for training in comparison.grid]
    if comparison.alone is not None:
        loader.load(str(written(comparison.lone(comparison.alone.steps), lone(out, "any"))))
        asked = comparison.asked(comparison.prompts)
        tasks += [partial(make_alone, comparison, out, prompt) for some in asked.values() for prompt in some]
        tasks.append(partial(make_alone, comparison, out / "cost", asked["seen"][0], brief=True))
    if over_ranks:
        tasks.append(partial(make_parallel, comparison, out))
    return [partial(attempt, task) for task in tasks], partial(report, comparison, out)


def main(words: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/generators"))
    return comparing.command(parser, words, begin)


if __name__ == "__main__":
    sys.exit(main())
