"""One self-contained HTML page about one run, or comparing several: pictures, the mesh to turn, curves, time per part.

The paper's letters (DreamPropeller, arXiv 2311.17082, section 4): T steps, K iterations, e the threshold; T/K is the
speed-up in iterations. What a run folder lacks is left out.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import median

from mpiprop import config
from mpiprop.charts import Points, curves, shares
from mpiprop.core.errors import UserError
from mpiprop.export.files import atomic

PARTS = {"evaluate_s": "evaluate", "rollout_s": "roll out", "transport_s": "transport", "checkpoint_s": "checkpoint"}
NEEDED = {"stage", "tau", "k", "stride", "e", "errors", "seconds"}  # of a record
KNOWN = {*NEEDED, *PARTS, "evaluations", "step", "ranks"}  # the rest are losses
VIEWS = 12  # pictures of a run at most


@dataclass(frozen=True)
class RunSummary:
    """What the page says about one run."""

    folder: Path
    prompt: str
    config: str  # YAML text
    horizon: int  # steps that were asked for, 0 where unknown
    records: Sequence[dict]  # of metrics.jsonl, with `step`: tau counted from the first stage on

    @classmethod
    def read(cls, folder: str | Path) -> "RunSummary":
        """The run in `folder`, as far as it is there. Raises UserError where there is no run at all."""
        folder = Path(folder)
        if not (folder / "config.yaml").is_file() and not (folder / "metrics.jsonl").is_file():
            raise UserError(f"{folder}: is not a run folder: neither config.yaml nor metrics.jsonl is there")
        text = _text(folder / "config.yaml")
        keys = config.loads(text, str(folder / "config.yaml")) if text else {}
        horizon = sum(stage.get("steps", 0) for stage in keys.get("stages", []))
        prompt = keys.get("prompt") or keys.get("image") or folder.name
        return cls(folder, str(prompt), text, horizon, list(_records(_text(folder / "metrics.jsonl"))))

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
        """Wall time of the iterations."""
        return sum(record["seconds"] for record in self.records)

    def series(self, key: str) -> Points:
        """The numbers that the records have under `key`, over the step."""
        return [(record["step"], record[key]) for record in self.records if isinstance(record.get(key), int | float)]


def write(runs: Sequence[RunSummary], out: str | Path) -> None:
    """Writes the page about `runs`, compared first if they are several, to `out`."""
    title = runs[0].prompt if len(runs) == 1 else f"{len(runs)} runs compared"
    body = [] if len(runs) == 1 else [_comparison(runs)]
    body += [_section(run, f"glb-{i}") for i, run in enumerate(runs)]
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    parts = {"title": escape(title), "body": "\n".join(body)}
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


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


def _comparison(runs: Sequence[RunSummary]) -> str:
    """All runs in one table, and their progress over time."""
    rows = "".join(
        f"<tr><td>{escape(run.prompt)}<br><span class=soft>{escape(run.folder.name)}</span></td><td>{run.steps:,}</td>"
        f"<td>{run.iterations:,}</td><td>{_ratio(run.steps, run.iterations)}</td><td>{run.evaluations:,}</td>"
        f"<td>{_clock(run.seconds)}</td><td>{1000 * run.seconds / max(1, run.steps):,.0f} ms</td></tr>" for run in runs)
    names = _distinct([run.folder.name for run in runs])
    progress = {}
    for name, run in zip(names, runs):
        passed, progress[name] = 0.0, [(0.0, 0.0)]
        for record in run.records:
            passed += record["seconds"]
            progress[name].append((passed, record["step"]))
    strides = {name: run.series("stride") for name, run in zip(names, runs)}
    return (f"<section><h1>{len(runs)} runs compared</h1><h2>Steps, iterations, time</h2><div class=wide>"
            "<table><tr><th>run</th><th>steps T</th><th>iterations K</th><th>T/K</th><th>evaluations</th><th>wall</th>"
            f"<th>a step</th></tr>{rows}</table></div><h2>Progress</h2><div class=charts>"
            f"{curves('Steps done', progress, 's')}{curves('Stride', strides, 'steps')}</div></section>")


def _section(run: RunSummary, glb: str) -> str:
    """All about one run."""
    unfinished = "" if not run.horizon or run.steps >= run.horizon else f" of {run.horizon:,}"
    facts = {"steps T": f"{run.steps:,}{unfinished}", "iterations K": f"{run.iterations:,}",
             "T/K": _ratio(run.steps, run.iterations), "evaluations": f"{run.evaluations:,}",
             "wall": _clock(run.seconds)}
    listed = "".join(f"<div><b>{value}</b><span class=soft>{name}</span></div>" for name, value in facts.items())
    numbers = f"<div class=facts>{listed}</div>" if run.records else ""
    keys = f"<details><summary>Configuration</summary><pre>{escape(run.config)}</pre></details>" if run.config else ""
    return (f"<section><h1>{escape(run.prompt)}</h1><p class=soft>{escape(run.folder.name)}</p>"
            f"{numbers}{_pictures(run, glb)}{_charts(run)}{keys}</section>")


def _pictures(run: RunSummary, glb: str) -> str:
    """The turntable, the mesh to turn, and the views."""
    shown, mesh = [], run.folder / "mesh.glb"
    if (turntable := run.folder / "turntable.gif").is_file():
        shown.append(f'<figure><img src="{_inline(turntable)}" alt="turntable"><figcaption>Turntable</figcaption>'
                     "</figure>")
    if (pair := run.folder / "likeness.png").is_file():
        shown.append(f'<figure><img src="{_inline(pair)}" alt="picture and view"><figcaption>The picture, and the object from '
                     "there</figcaption></figure>")
    if mesh.is_file():
        shown.append(f'<figure><canvas data-glb="{glb}"></canvas><figcaption>Mesh: drag to turn, wheel to come nearer, '
                     'double click to reset</figcaption>'
                     f'<script type="text/plain" id="{glb}">{_base64(mesh)}</script></figure>')
    views = sorted((run.folder / "views").glob("*.png"))
    some = [views[i * len(views) // VIEWS] for i in range(VIEWS)] if len(views) > VIEWS else views
    strip = "".join(f'<img src="{_inline(view)}" alt="{escape(view.stem)}">' for view in some)
    stage = f"<div class=stage>{''.join(shown)}</div>" if shown else ""
    return stage + (f"<div class=views>{strip}</div>" if strip else "")


def _charts(run: RunSummary) -> str:
    """Stride, errors and threshold, time per part, and every loss."""
    if not run.records:
        return ""
    starts = {}
    for record in run.records:
        starts.setdefault(record["stage"], record["step"] - record["tau"])
    marks = starts if len(starts) > 1 else {}
    medians = [(record["step"], median(record["errors"])) for record in run.records if record["errors"]]
    errors = {"median of the window": medians, "threshold e": run.series("e")}
    spent = {name: sum(y for _, y in run.series(key)) for key, name in PARTS.items()}
    losses = list(dict.fromkeys(key for record in run.records for key in record if key not in KNOWN))
    drawn = [curves("Stride", {"stride": run.series("stride")}, "steps", marks=marks),
             curves("Error", errors, "steps", log_y=True, marks=marks), shares("Time per part", spent, "s")]
    drawn += [curves(name, {name: run.series(name)}, "steps", marks=marks) for name in losses]
    return f"<h2>How it went</h2><div class=charts>{''.join(drawn)}</div>"


def _ratio(a: int, b: int) -> str:
    return f"{a / b:.2f}" if b else "–"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where they would be the same."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _base64(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()


def _inline(path: Path) -> str:
    """A picture as a data address."""
    return f"data:image/{path.suffix[1:]};base64,{_base64(path)}"
