"""What a run folder tells about its run. What it lacks is left out.

The paper's letters (DreamPropeller, arXiv 2311.17082, section 4): T steps, K iterations; T/K is the speed-up in iterations.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.report.charts import Points
from mpiprop.report.made import Made

NEEDED = {"stage", "tau", "k", "stride", "e", "errors", "seconds"}  # of a record


@dataclass(frozen=True)
class RunSummary:
    """What the page says about one run."""

    folder: Path
    config: str  # YAML text
    keys: Mapping[str, Any]  # the same as data
    records: Sequence[dict]  # of metrics.jsonl, with `step`: tau counted from the first stage on
    made: Made

    @classmethod
    def read(cls, folder: str | Path) -> "RunSummary":
        """The run in `folder`, as far as it is there. Raises UserError where there is no run at all."""
        folder = Path(folder)
        if not (folder / "config.yaml").is_file() and not (folder / "metrics.jsonl").is_file():
            raise UserError(f"{folder}: is not a run folder: neither config.yaml nor metrics.jsonl is there")
        text = _text(folder / "config.yaml")
        keys = loader.loads(text, str(folder / "config.yaml")) if text else {}
        return cls(folder, text, keys, list(_records(_text(folder / "metrics.jsonl"))), Made.read(folder))

    @property
    def prompt(self) -> str:
        """The prompt, or the name of the picture, or else of the folder."""
        return str(self.keys.get("prompt") or Path(self.keys.get("image") or self.folder).name)

    @property
    def horizon(self) -> int:
        """Steps of all stages that were asked for, 0 where unknown."""
        return sum(stage.get("steps", 0) for stage in self.keys.get("stages", []))

    @property
    def settings(self) -> dict[str, str]:
        """What tells this run from others, by name, as far as it is known."""
        windows = [stage.get("window", {}) for stage in self.keys.get("stages", [])]
        sizes = [window.get("size", self.keys.get("window", {}).get("size")) for window in windows]
        ranks = [record.get("ranks") for record in self.records]
        found = {"configuration": [self.keys.get("name")], "seed": [self.keys.get("seed")], "window": sizes, "ranks": ranks}
        joined = {name: ", ".join(str(value) for value in dict.fromkeys(values) if value not in (None, ""))
                  for name, values in found.items()}
        return {name: text for name, text in joined.items() if text}

    @cached_property
    def leaves(self) -> dict[str, str]:
        """Every value of the configuration under the dotted key that sets it."""
        return dict(_leaves(self.keys))

    @property
    def steps(self) -> int:
        """T, so far."""
        return self.records[-1]["step"] if self.records else 0

    @property
    def iterations(self) -> int:
        """K, so far."""
        return len(self.records)

    @property
    def evaluations(self) -> int:
        """How many gradients were evaluated, so far."""
        return sum(record.get("evaluations", 0) for record in self.records)

    @property
    def seconds(self) -> float:
        """Time that the iterations took."""
        return sum(record["seconds"] for record in self.records)

    def series(self, key: str) -> Points:
        """The numbers that the records have under `key`, over the step."""
        return [(record["step"], record[key]) for record in self.records if isinstance(record.get(key), int | float)]

    def variance(self, name: str) -> dict[str, Points]:
        """The running variances `name` ("theta", or a term) over the step, by noise level where there are levels: fifths of
        the timesteps."""
        found: dict[str, list[tuple[float, float]]] = {}
        for record in self.records:
            levels = record.get("variance", {}).get(name, [])
            for i in range(0, len(levels), 2):
                label = f"t {10 * i} to {10 * i + 20} %" if len(levels) > 1 else name
                if known := [level for level in levels[i:i + 2] if level is not None]:
                    found.setdefault(label, []).append((record["step"], sum(known) / len(known)))
        return dict(sorted(found.items()))


def differences(runs: Sequence[RunSummary]) -> dict[str, list[str]]:
    """The keys in which the configurations of the runs differ, with the value of each run, empty where it has none."""
    keys = dict.fromkeys(key for run in runs for key in run.leaves)
    values = {key: [run.leaves.get(key, "") for run in runs] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text; a list without mappings in it is one value."""
    if isinstance(tree, Mapping) and tree:
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        items = enumerate(tree)
    else:
        yield path, tree if isinstance(tree, str) else json.dumps(tree)
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _records(text: str) -> Iterator[dict]:
    """The whole records of metrics.jsonl with their `step`; a line that a kill cut short is passed over."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and NEEDED <= record.keys():
            found.append(record)
    before = 0
    for _, stage in groupby(found, key=lambda record: record["stage"]):
        for record in stage:
            yield record | {"step": before + record["tau"]}
        before += record["tau"]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
