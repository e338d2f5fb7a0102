"""What tools/compare_generators.py compares: the records of its file, the prompts, and what ranks would have taken."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from mpiprop.config import loader
from mpiprop.config.conversion import convert, key
from mpiprop.config.prompts import read_prompts
from mpiprop.core.errors import UserError, suggestion
from mpiprop.corpus.objects import SCENES
from mpiprop.priors import vocabulary
from mpiprop.run.folders import slug
from tools.compare_loras import scaled
from tools.comparing import Objective
from tools.gallery import LEAN


@dataclass(frozen=True)
class Alone:
    """Prompts that are made without a generator, each by a run of its own."""

    config: str = key("configuration whose first stage it is", "demo")
    steps: int = key("of a run; schedules are scaled to it", 150, lo=1)


@dataclass(frozen=True)
class Parallel:
    """What is trained over ranks."""

    network: str = key("name of the network")
    objective: str = key("name of the objective")
    workers: int = key("ranks that evaluate; the window's size", 7, lo=1)


@dataclass(frozen=True)
class Training:
    """One generator's training."""

    network: str
    objective: str
    prompts: int
    steps: int
    window: int = 1
    batch: int = 1  # times that of the configuration
    shards: int = 1

    def folder(self, out: Path) -> Path:
        name = f"{self.prompts}-prompts-{self.steps}-steps"
        for told in ("window", "batch", "shards"):
            name += f"-{told}-{getattr(self, told)}" if getattr(self, told) > 1 else ""
        return out / slug(self.network) / slug(self.objective) / name


@dataclass(frozen=True)
class Comparison:
    """The whole of it."""

    steps: int = key("of a training; schedules are scaled to it", lo=1)
    config: str = key("configuration of a generator, whose first stage it is", "demo/hyper-ingp")
    prompts: int = key("how many networks are trained on", 16, lo=1)
    judged: int = key("how many of these, and of unseen ones, are made and judged at most", 4, lo=1)
    truth: bool = key("whether they are held against the true solids, which takes most of the judging's time", True)
    objectives: dict[str, Objective] = key("by name", dict)
    window: int = key("size of the window that tells T/K", 7, lo=1)
    window_steps: int = key("of the run that tells T/K", 40, lo=1)
    alone: None | Alone = key("prompts made each by a run of its own", None)
    parallel: None | Parallel = key("training over ranks", None)
    scaling: tuple[int, ...] = key("numbers of prompts, of all at most, that parallel's network is trained on, too", ())
    set: tuple[str, ...] = key("overrides of every run, key=value", ())
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)  # keys of the stage, as in a configuration, by name

    @classmethod
    def read(cls, path: Path) -> "Comparison":
        """Raises UserError where the file says what cannot be understood."""
        tree = loader.loads(path.read_text(), str(path))
        guidance = {name: row.pop("guidance", {}) for name, row in tree.get("objectives", {}).items()}
        networks = tree.pop("networks", {})
        found = convert(cls, tree, "")
        found.networks.update({name: told or {} for name, told in networks.items()})
        for name, row in found.objectives.items():
            row.guidance.update(guidance[name])
        if found.scaling and found.parallel is None:
            raise UserError(f"{path}: scaling: needs parallel, which says what is trained")
        if found.parallel is not None:
            for told, known in (("network", found.networks), ("objective", found.objectives)):
                if (name := getattr(found.parallel, told)) not in known:
                    raise UserError(f"{path}: parallel.{told}: {name!r} is not among {told}s{suggestion(name, known)}")
        return found

    @property
    def grid(self) -> list[Training]:
        """Every network by every objective."""
        return [Training(network, row, self.prompts, self.steps) for network in self.networks for row in self.objectives]

    @property
    def counts(self) -> list[Training]:
        """One network on ever more prompts."""
        return [replace(self.base, prompts=n) for n in dict.fromkeys(len(pairs(n)["seen"]) for n in self.scaling)]

    @property
    def base(self) -> Training:
        """What is trained over ranks, by one worker."""
        return Training(self.parallel.network, self.parallel.objective, self.prompts, self.steps)

    def brief(self, training: Training) -> Training:
        """The run that tells T/K of a training."""
        return replace(training, steps=self.window_steps, window=self.window)

    def methods(self, out: Path) -> Iterator[tuple[str, Training]]:
        """Trainings over ranks; each is to be finished before the next is asked for."""
        workers = self.parallel.workers
        yield "time-parallel", (ahead := replace(self.base, window=workers))
        evaluations, seconds = spent(ahead.folder(out), workers)
        views = self.tree(ahead)["stages"][0]["terms"][0]["views"]["batch"]
        for name, batch, shards in ((f"data-parallel, {workers} times the batch", workers, workers),
                                    ("data-parallel, the same batch", 1, min(workers, views))):
            equal = replace(self.base, batch=batch, shards=shards, steps=max(1, round(evaluations / batch)))
            yield f"{name}, equal evaluations", equal
            step = spent(equal.folder(out), workers, shards)[1] / equal.steps
            yield f"{name}, equal wall-clock", replace(equal, steps=max(1, round(seconds / step)))

    def tree(self, training: Training) -> dict[str, Any]:
        """The configuration of a training."""
        tree = loader.read(self.config, [*LEAN, *self.set])
        stage = self.objectives[training.objective].of(tree["stages"][0] | self.networks[training.network], training.steps)
        stage["terms"][0]["views"]["batch"] *= training.batch
        tree.pop("prompt", None)
        return tree | {"stages": [stage], "prompts": pairs(training.prompts)["seen"],
                       "window": {"size": training.window, "shards": training.shards}}

    def lone(self, steps: int) -> dict[str, Any]:
        """The configuration of a prompt's own run."""
        tree = loader.read(self.alone.config, [*LEAN, *self.set])
        stage = tree["stages"][0]
        return tree | {"stages": [scaled(stage, steps / stage["steps"]) | {"steps": steps}]}

    def asked(self, n: int) -> dict[str, list[str]]:
        """The prompts that are judged of a training on n, by part."""
        return {part: found[:self.judged] for part, found in pairs(n).items()}


def pairs(n: int) -> dict[str, list[str]]:
    """n prompts to train on, those of fewer among them, and the unseen ones that have their shapes and looks.

    Shapes and looks come in by turns, so that as many as possible meet; looks that are held out of some shape first.
    """
    held = json.loads(vocabulary.FILE.read_text())["held_out"]
    shapes, first = [shape for shape in held if shape not in SCENES], [look for some in zip(*held.values()) for look in some]

    def taken(part: str) -> list[tuple[str, str, str]]:
        found = [(prompt, *prompt.split()[1:]) for prompt in read_prompts("builtin", part)]
        looks = list(dict.fromkeys([*first, *(look for _, look, _ in found)]))
        places = {pair: (shapes.index(pair[2]), looks.index(pair[1])) for pair in found if pair[2] in shapes}
        return sorted(places, key=lambda pair: sorted(places[pair], reverse=True))
    seen = taken("train")[:n]
    looks, kinds = ({pair[i] for pair in seen} for i in (1, 2))
    return {"seen": [prompt for prompt, *_ in seen],
            "unseen": [prompt for prompt, look, shape in taken("val") if look in looks and shape in kinds]}


def spent(folder: Path, workers: int, shards: int = 1) -> tuple[int, float]:
    """The evaluations of a run, and its wall-clock (s) if their shards had gone to so many workers."""
    slides = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    slides = [slide for slide in slides if slide["evaluations"]]
    task = median(slide["evaluate_s"] / (slide["evaluations"] * shards) for slide in slides)
    return (sum(slide["evaluations"] for slide in slides),
            task * sum(ceil(slide["evaluations"] * shards / workers) for slide in slides))
