"""What comparisons of runs share: runs that are made once, side by side, what is measured of them, and cells of tables."""

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from mpiprop.config.conversion import key
from mpiprop.core.errors import DONE, FAILED, INTERRUPTED, RunError, UserError
from mpiprop.io.files import atomic
from mpiprop.run import outputs, program
from tools.compare_loras import scaled
from tools.gallery import evaluated, speed

Figures = dict[str, float | None]
INHERITED = ("prior", "prompts", "t_min", "t_max")  # keys of a guidance that another one has unless it says otherwise
PERCENT = 100  # steps of an objective's own schedules that are the whole run
LORA_LR = 0.001  # as in demo/prolificdreamer
ASKED = 8  # steps, evenly over the run, whose cost is measured
QUALITY = {"similarity": ("similarity", "{:.3f}"), "iou": ("IoU", "{:.3f}"), "chamfer": ("Chamfer", "{:.4f}"),
           "psnr_db": ("PSNR (dB)", "{:.2f}"), "ssim": ("SSIM", "{:.3f}")}


@dataclass(frozen=True)
class Objective:
    """What a run follows."""

    weight: float = key("factor of its gradient")
    set: tuple[str, ...] = key("overrides, key=value", ())
    guidance: dict[str, Any] = field(default_factory=dict)  # as in a configuration; schedules in percent of the run

    def of(self, stage: dict[str, Any], steps: int) -> dict[str, Any]:
        """The tree of a stage with this objective, made to last so many steps."""
        stage = scaled(stage, steps / stage["steps"]) | {"steps": steps}
        term = stage["terms"][0]
        term["guidance"] = {name: value for name, value in term["guidance"].items() if name in INHERITED} | scaled(
            self.guidance, steps / PERCENT)
        term["weight"] = self.weight
        if "lora" in self.guidance:
            lr = stage["optimiser"]["lr"]
            rates = lr if isinstance(lr, dict) else {"geometry": lr, "background": lr}
            stage["optimiser"]["lr"] = rates | {"lora": LORA_LR}
        return stage


def run(config: Path, folder: Path, overrides: list[str], measured: Callable[[Path], Figures]) -> None:
    """One run and its figures, unless they are there."""
    if (folder / "figures.json").exists():
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        code = program.main(str(config), overrides, folder, resume=True)
    if code:
        raise RunError(f"{folder}: the run ended with exit code {code}; run.log there says why")
    keep(folder, measured(folder))


def keep(folder: Path, figures: Figures) -> None:
    """Writes figures.json, which says that a run is done and measured, and prints it."""
    found = {name: value for name, value in figures.items() if value is not None}
    with atomic(folder / "figures.json") as part:
        part.write_text(json.dumps(found))
    print(f"{folder}: " + "  ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)


def kept(folder: Path) -> dict[str, float]:
    """The figures of a run; none where it is not done."""
    file = folder / "figures.json"
    return json.loads(file.read_text()) if file.exists() else {}


def quality(folder: Path, true: bool = True) -> Figures:
    """The judge's measures of a finished run, and if `true` those against the true solid where there is one."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        score, truth = evaluated(folder, true)
    found: Figures = {"r_precision": score.r_precision, "similarity": score.similarity}
    if truth is not None:
        found |= {"iou": truth.iou, "chamfer": truth.chamfer, "psnr_db": truth.psnr_db, "ssim": truth.ssim}
    return found


def cost(folder: Path) -> Figures:
    """T/K of a run in a window; of one evaluation at its end CPU seconds, megabytes of theta and gradient, and images shown
    to networks for each view."""
    stage, found = outputs.newest(folder)
    theta, unit, shown = found.window.x.theta, stage.unit(stage.embeddings(stage.stores(folder))), 0
    unit(theta, 0)  # reads the networks

    def counted(predict: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def predicted(x_t: torch.Tensor, *rest: Any, **inputs: Any) -> torch.Tensor:
            nonlocal shown
            shown += len(x_t)
            return predict(x_t, *rest, **inputs)
        return predicted
    prior = unit.terms[0].guidance.prior
    prior.eps = counted(prior.eps)
    if stage.lora is not None:  # its predictions, and those that it learns from
        stage.lora.predict = counted(stage.lora.predict)
    steps, start = range(0, stage.T, ceil(stage.T / ASKED)), time.thread_time()
    for tau in steps:
        unit(theta, tau)
    seconds = (time.thread_time() - start) / len(steps)
    views = len(stage.views[0](0, stage.init))
    return {"seconds": seconds, "megabytes": 4e-6 * (theta.layout.L + theta.layout.D),
            "predictions": shown / len(steps) / views, "speed": speed(folder)[0]}


def cell(values: Sequence[Sequence[float]], form: str) -> str:
    """The mean of all values and the deviation of the seeds' means."""
    means = [fmean(some) for some in values if some]
    if not means:
        return "-"
    spread = f" ± {form.format(stdev(means))}" if len(means) > 1 else ""
    return form.format(fmean(value for some in values for value in some)) + spread


def attempt(work: Callable[[], None]) -> list[str]:
    """Does it. Returns what went wrong, in one line."""
    try:
        work()
    except (UserError, RunError) as error:
        print(error, file=sys.stderr, flush=True)
        return [str(error)]
    return []


def enter() -> None:
    """Begins a worker process: it ends with the tool, however that ends. Its run goes on from its checkpoint the next time."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, of Linux


def side_by_side(tasks: Iterable[Callable[[], list[str]]], jobs: int) -> list[str]:
    """Does tasks, which return what went wrong, in so many processes; returns all of that."""
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), enter)
    try:
        made = [pool.submit(task) for task in tasks]
        return [line for future in made for line in future.result()]
    finally:
        pool.shutdown(cancel_futures=True)


def command(parser: argparse.ArgumentParser, words: Iterable[str] | None,
            prepare: Callable[[Path, Path], tuple[Iterable[Callable[[], list[str]]], Callable[[], None]]]) -> int:
    """The command line of a comparison; its exit code.

    prepare: from the comparison's file and the output folder its tasks, and what reports on those that are done
    """
    parser.add_argument("comparison", type=Path, metavar="FILE.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--report", action="store_true", help="make no runs")
    args = parser.parse_args(None if words is None else [*words])
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        tasks, report = prepare(args.comparison, args.out)
        failures = [] if args.report else side_by_side(tasks, args.jobs)
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    report()
    if failures:
        print(*failures, sep="\n", file=sys.stderr)
        return FAILED
    return DONE
