"""The page: pictures, the object to turn, numbers and curves of one run, or of several, side by side first."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mpiprop.io.files import atomic
from mpiprop.report import splats
from mpiprop.report.charts import Chart, curves
from mpiprop.report.summary import NEEDED, RunSummary, differences
from mpiprop.report.terms import PARTS, TERMS, VARIANCE

HERE = Path(__file__).parent
KNOWN = {*NEEDED, *PARTS, "evaluations", "step", "ranks", "variance"}  # keys of a record; the rest are losses
VIEWS = 12  # pictures of a run at most
RATIO = "speed-up in iterations (T/K)"
FEW = 24  # differing keys that are shown unasked


def write(runs: Sequence[RunSummary], out: str | Path) -> None:
    """Writes the page about `runs`, compared first if they are several, to `out`."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    names = _distinct([run.folder.name for run in runs])
    page = environment.get_template("page.html").render(
        title=runs[0].prompt if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=[_shown(run, name) for run, name in zip(runs, names)],
        differing=differences(runs), few=FEW, judge=any(run.made.judged for run in runs), progress=_progress(runs, names),
        text=lambda name: (HERE / name).read_text())
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _shown(run: RunSummary, name: str) -> dict[str, Any]:
    """What the template shows of one run."""
    views = sorted((run.folder / "views").glob("*.png"))
    views = [views[i * len(views) // VIEWS] for i in range(VIEWS)] if len(views) > VIEWS else views
    cloud, glb = run.folder / "cloud.ply", run.folder / "mesh.glb"
    packed = splats.packed(cloud) if cloud.is_file() else None
    numbers = _numbers(run)
    return {
        "name": name, "prompt": run.prompt, "made": list(run.made.lines()), "settings": run.settings, "numbers": numbers,
        "card": run.settings | ({"T/K": numbers[RATIO], "time": numbers["time"]} if numbers else {})
        | ({"named right": run.made.judged.brief} if run.made.judged else {}),
        "row": [*list(numbers.values()), f"{1000 * run.seconds / max(1, run.steps):,.0f} ms"] if numbers else [],
        "turntable": _inline(run.folder / "turntable.gif"), "likeness": _inline(run.folder / "likeness.png"),
        "views": {view.stem: _inline(view) for view in views},
        "glb": _base64(glb.read_bytes()) if glb.is_file() else "",
        "splats": packed and {"words": _base64(packed.words.tobytes()), "box": json.dumps(packed.box),
                              "shown": len(packed.words), "all": packed.number},
        "charts": _charts(run), "spent": _spent(run), "config": run.config}


def _numbers(run: RunSummary) -> dict[str, str]:
    """How far and how fast."""
    if not run.records:
        return {}
    unfinished = f" of {run.horizon:,}" if run.steps < run.horizon else ""
    return {"steps (T)": f"{run.steps:,}{unfinished}", "iterations (K)": f"{run.iterations:,}",
            RATIO: f"{run.steps / run.iterations:.2f}",
            "gradients evaluated": f"{run.evaluations:,}", "time": _clock(run.seconds)}


def _progress(runs: Sequence[RunSummary], names: Sequence[str]) -> list[Chart]:
    """Steps over time, and strides, of all runs."""
    done: dict[str, list[tuple[float, float]]] = {}
    for name, run in zip(names, runs):
        passed, done[name] = 0.0, [(0.0, 0.0)]
        for record in run.records:
            passed += record["seconds"]
            done[name].append((passed, record["step"]))
    strides = {name: run.series("stride") for name, run in zip(names, runs)}
    variances = {name: points for name, run in zip(names, runs) for points in run.variance("theta").values()}
    return [*curves("Steps done", done, "s"), *curves("Steps accepted per iteration", strides, "steps"),
            *curves("Variance of the gradient", variances, "steps", log_y=True, note=VARIANCE)]


def _charts(run: RunSummary) -> list[Chart]:
    """Stride, errors and threshold, and every loss."""
    starts: dict[str, float] = {}
    for record in run.records:
        starts.setdefault(record["stage"], record["step"] - record["tau"])
    marks: Mapping[str, float] = starts if len(starts) > 1 else {}
    medians = [(record["step"], median(record["errors"])) for record in run.records if record["errors"]]
    errors = {"median of the window": medians, "threshold e": run.series("e")}
    terms = dict.fromkeys(name for record in run.records for name in record.get("variance", {}))
    losses = dict.fromkeys(key for record in run.records for key in record if key not in KNOWN)
    return [
        *curves("Steps accepted per iteration", {"stride": run.series("stride")}, "steps", marks=marks,
                note="How far the window moves on (its stride): the more, the faster the run."),
        *curves("Error of the iterates", errors, "steps", log_y=True, marks=marks,
                note="Mean square, for each trained number, of how far an iterate was from what replaced it. A step is "
                     "accepted when its error is at most the threshold e."),
        *(chart for name in terms for chart in curves(
            f"Variance of the gradient ({name})", run.variance(name), "steps", marks=marks, log_y=True, note=VARIANCE)),
        *(chart for name in losses for title, note in [TERMS.get(name, (name, ""))]
          for chart in curves(title, {name: run.series(name)}, "steps", marks=marks, note=note))]


def _spent(run: RunSummary) -> dict[str, tuple[str, float]]:
    """Seconds as text and percent of each part of a run's time; empty where none is known."""
    spent = {title: sum(y for _, y in run.series(key)) for key, title in PARTS.items()}
    total = sum(spent.values())
    return {title: (f"{seconds:,.2f} s", 100 * seconds / total) for title, seconds in spent.items()} if total else {}


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where they would be the same."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


def _inline(path: Path) -> str:
    """A picture as a data address, empty if there is none."""
    return f"data:image/{path.suffix[1:]};base64,{_base64(path.read_bytes())}" if path.is_file() else ""
