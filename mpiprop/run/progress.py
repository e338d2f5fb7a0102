"""Reports a stage's slides: metrics.jsonl, the progress line, the file `status`, previews, and TensorBoard if asked
for."""

import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from mpiprop.core import variance
from mpiprop.core.theta import State
from mpiprop.run import outputs
from mpiprop.config.schema import Run
from mpiprop.run.log import Log
from mpiprop.picard.window import Window
from mpiprop.run.stage import Stage
from mpiprop.transport.base import Transport

RECENT, ENOUGH = 40, 4  # slides whose pace counts at most, and at least


class Reporter:
    """Rank 0's account of one stage."""

    def __init__(self, run: Run, stage: Stage, folder: Path, log: Log) -> None:
        self.run, self.stage, self.folder, self.log = run, stage, folder, log
        self.spent: defaultdict[str, float] = defaultdict(float)  # seconds of rank 0 by part since the last slide

    def begin(self, window: Window) -> None:
        """Start counting from `window`."""
        self.window = window
        self.clock = self.shown = perf_counter()
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # when a slide ended, and at which step
        wanted = os.environ.get("MPIPROP_TENSORBOARD") == "1"
        self.board = _board(self.folder / "tensorboard" / self.stage.name, window.x.tau + 1) if wanted else None
        self.state("running")

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Counts the seconds inside as spent on `part`."""
        start = perf_counter()
        try:
            yield
        finally:
            self.spent[part] += perf_counter() - start

    def slide(self, window: Window, transport: Transport) -> None:
        """Record the slide that led to `window`. Raises RunError if the disk is full."""
        self.window, now, spent, T = window, perf_counter(), self.spent, self.stage.T
        evaluations, evaluate_s = transport.busy.since(self.clock)
        seconds = now - self.clock - spent["preview"]
        apart = evaluate_s + spent["rollout"] + spent["checkpoint"]
        losses = {name: fmean(step[name] for step in window.scalars if name in step) for name in window.scalars[-1]}
        self.log.record(stage=self.stage.name, tau=window.x.tau, k=window.k, stride=window.stride, e=window.e,
                        errors=list(window.errors), evaluations=evaluations, seconds=seconds, evaluate_s=evaluate_s,
                        rollout_s=spent["rollout"], transport_s=max(0.0, seconds - apart),
                        checkpoint_s=spent["checkpoint"], ranks=transport.ranks, **losses,
                        **({"points": N} if (N := window.x.theta.layout.N) else {}), variance=running_variance(window.x))
        self.recent.append((now, window.x.tau))
        named = "  ".join(f"{name} {value:.3g}" for name, value in list(losses.items())[:4])
        left = eta(self.recent, T)
        self.log.progress(f"{self.stage.name} {window.x.tau:{len(str(T))}d}/{T}  T/K {window.x.tau / window.k:.2f}  stride "
                          f"{window.stride}  error {max(window.errors):.1e}  e {window.e:.1e}  {named}{left and '  '}{left}",
                          last=window.x.tau == T)
        self.log.status(self._status("running"), seldom=True)
        if self.board:
            values = {"stride": window.stride, "e": window.e, "error": max(window.errors), "seconds": seconds}
            for name, value in (values | losses).items():
                self.board.add_scalar(name, value, window.x.tau)
        self.clock, self.spent = now, defaultdict(float)

    def show(self, window: Window) -> None:
        """A preview of `window`, if one is due; the stage's end is always shown."""
        every_s = self.run.preview.every_s
        if every_s and (perf_counter() - self.shown > every_s or window.x.tau == self.stage.T):
            picture = outputs.preview(self.run, self.stage, window.x.theta, window.x.tau, self.folder)
            if self.board:
                self.board.add_image("preview", picture, window.x.tau, dataformats="HWC")
            self.shown = perf_counter()

    def state(self, state: str) -> None:
        """Put running, preempted, done or failed before how far the run has come, in `status`."""
        self.log.status(self._status(state))
        if self.board and state != "running":
            self.board.close()

    def _status(self, state: str) -> str:
        x, k = self.window.x, self.window.k
        left = eta(self.recent, self.stage.T) if state == "running" else ""
        return f"{state} {self.stage.name} {x.tau}/{self.stage.T} T/K {x.tau / max(1, k):.1f} {left}".rstrip()


def running_variance(x: State) -> dict[str, list[float | None]]:
    """The running variances: of the gradient ("theta", one number), and of each term's in the prior's space, by level."""
    return {name.removeprefix("guidance.").removesuffix(".variance"): variance.variances(averages)
            for name, averages in x.averages.items()}


def eta(slides: Sequence[tuple[float, int]], T: int) -> str:
    """The time to step T at the pace between slides, each its end (s) and its step, as "ETA [h:]mm:ss"; empty where there are
    too few of them. The time before the first is none of it: the models are read then."""
    if len(slides) < ENOUGH:
        return ""
    (began, first), (ended, last) = slides[0], slides[-1]
    left = int((ended - began) / (last - first) * (T - last))
    hours = f"{left // 3600}:" if left >= 3600 else ""
    return f"ETA {hours}{left // 60 % 60:0{2 if hours else 1}d}:{left % 60:02d}"


def _board(folder: Path, purge: int) -> Any:
    """A TensorBoard writer for `folder`, where records from step `purge` on, of a run that was killed, no longer count."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge, flush_secs=10)
