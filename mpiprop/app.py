"""The SPMD program: stages in order, rank 0 rolling out and saving, the others evaluating.

Everything that a run does besides the algorithm stands around one loop, `for window in propel(...)`.
"""

import os
import traceback
from pathlib import Path
from statistics import fmean
from time import monotonic, perf_counter

import torch

from . import __version__, checkpoint, config, results, run_folder, stop
from .checkpoint import Checkpoint
from .config import Run
from .core.errors import DONE, FAILED, MISTAKE, PREEMPTED, Preempted, RunError, UserError
from .core.log import Log
from .core.memory import recycle_large_blocks
from .core.theta import Drift, State
from .picard.propeller import PseudoInverse, Window, propel
from .picard.rollout import Rollout
from .recipe import Stage
from .transport.base import Serial, Transport
from .transport.world import World

FREE_TO_CHANGE = ("device", "threads", "window", "checkpoint", "preview", "turntable", "mesh")  # on --resume


def main(name: str, overrides: list[str], out: Path | None, resume: bool) -> int:
    """Run configuration `name` on all ranks; the exit code."""
    log = Log()
    try:
        world = World.open()
        log = Log(rank=world.rank)
        return Program(world, log).run(name, overrides, out, resume)
    except UserError as error:
        log.say(f"mpiprop: {error}", error=True)
        return MISTAKE
    except RunError as error:
        log.say(f"mpiprop: {error}", error=True)
        return FAILED


class Program:
    """One rank's part in a run."""

    def __init__(self, world: World, log: Log) -> None:
        self.world, self.log = world, log
        self.cuda_aware = os.environ.get("MPIPROP_CUDA_AWARE", "0") == "1"

    def run(self, name: str, overrides: list[str], out: Path | None, resume: bool) -> int:
        text, folder = self.world.together(lambda: self._open(name, overrides, out, resume), by=0)
        run = self.world.together(lambda: config.parse(config.loads(text, name), name))
        torch.set_num_threads(run.threads)
        recycle_large_blocks()
        self.device = self.world.together(lambda: self.world.device(run.device))
        begin, finished = self.world.together(lambda: self._resume(folder, run, text, resume), by=0)
        if finished:
            self.log.say(f"{folder}: finished already")
            return DONE
        for index in range(begin, len(run.stages)):
            code = self._stage(run, text, index, folder)
            if code is not None:
                return code
        return DONE

    def _open(self, name: str, overrides: list[str], out: Path | None, resume: bool) -> tuple[str, Path]:
        """The resolved configuration and the run folder, which is made and locked, and told what happens in it."""
        run = config.load(name, overrides)
        if run.image is not None:
            raise UserError(f"image={run.image}: {name} makes objects from a prompt alone; leave image out")
        if not run.prompt:
            raise UserError('nothing to make: give prompt="..."')
        folder = run_folder.choose(Path(name).stem if name.endswith(".yaml") else name, run.prompt, run.seed, out, resume)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = run_folder.lock(folder)
            self.log = Log(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        stop.watch(folder)
        return config.resolved(run), folder

    def _resume(self, folder: Path, run: Run, text: str, resume: bool) -> tuple[int, bool]:
        """The stage to go on with, and whether nothing is left to do."""
        index, finished = 0, False
        if resume and (folder / "window.h5").exists():
            found = checkpoint.load(folder / "window.h5")
            if difference := _difference(config.loads(found.config, "checkpoint"), config.loads(text, "now")):
                raise UserError(f"{folder / 'window.h5'}: is of another configuration: {difference}; "
                                "give the same one, or another --out")
            index, finished = [stage.name for stage in run.stages].index(found.stage), (folder / "done").exists()
        else:
            for stale in ("done", "metrics.jsonl"):
                (folder / stale).unlink(missing_ok=True)
        if not finished:
            (folder / "config.yaml").write_text(text)
        return index, finished

    def _stage(self, run: Run, text: str, index: int, folder: Path) -> int | None:
        """One stage on this rank: None if another follows, else the exit code of the run."""
        world = self.world
        stage = world.together(lambda: Stage(run, index, self.device))
        embeddings = world.together(stage.embeddings, by=1)
        evaluates = world.size == 1 or not world.root
        unit = world.together(lambda: stage.unit(embeddings) if evaluates else None)
        if not world.root:
            from .transport.mpi import serve
            return serve(world.comm, unit, stage.scene.layout, self.device, lambda: bool(stop.asked()),
                         cuda_aware=self.cuda_aware)
        if world.size == 1:
            transport = Serial(unit, lambda: bool(stop.asked()))
        else:
            from .transport.mpi import Mpi
            transport = Mpi(world.comm, self.device, lambda: bool(stop.asked()), cuda_aware=self.cuda_aware)
        code = FAILED
        try:
            code = Root(run, text, stage, folder, self.log, transport, index + 1 == len(run.stages)).drive()
        except Preempted:
            code = PREEMPTED
        except (UserError, RunError) as error:
            self.log.say(f"mpiprop: {error}", error=True)
            code = MISTAKE if isinstance(error, UserError) else FAILED
        except Exception as error:
            self.log.say(f"mpiprop: {type(error).__name__}: {error} (a defect; the traceback is in {folder / 'run.log'})",
                         error=True)
            self.log.note(traceback.format_exc())
        finally:
            transport.close(code)
        return code


class Root:
    """Rank 0's part in a stage: the loop, and what is said, saved and shown around it."""

    def __init__(self, run: Run, text: str, stage: Stage, folder: Path, log: Log, transport: Transport, last: bool) -> None:
        self.run, self.text, self.stage, self.folder, self.log = run, text, stage, folder, log
        self.transport, self.last, self.path = transport, last, folder / "window.h5"
        self.complete, self.rollout_s = False, 0.0

    def drive(self) -> int | None:
        """Run the stage from its checkpoint, or from its beginning. Raises Preempted after saving."""
        rollout = self.stage.rollout()

        def h_dagger(drift: Drift, x: State) -> State:
            start = perf_counter()
            x = rollout(drift, x)
            self.rollout_s += perf_counter() - start
            return x

        self.window = self._begin(rollout)
        if self.window.x.tau == 0:
            self._save()
        try:
            self._loop(h_dagger, rollout)
            self.complete = self.last
            self._save()
            if self.last:
                results.write(self.run, self.stage, self.window.x.theta, self.folder, self.log, self._stay)
        except Exception as error:
            self._save()
            if isinstance(error, Preempted):
                self.log.say(f"{stop.asked() or 'a signal on another rank'}: step {self.window.x.tau} of {self.stage.T} saved "
                             f"in {self.path}; run again with --resume")
                (self.folder / "stop").unlink(missing_ok=True)
            raise
        return DONE if self.last else None

    def _begin(self, rollout: Rollout) -> Window:
        """The window to go on from: the checkpoint's, or a new one, from where the previous stage ended if there is one."""
        stage = self.stage
        found = checkpoint.load(self.path, stage.device) if self.path.exists() else None
        theta = found.window.x.theta if found else stage.scene.theta()
        if theta.layout != stage.scene.layout:
            raise UserError(f"{self.path}: its numbers are laid out otherwise than those of stage {stage.name}; "
                            "give the same configuration, or another --out")
        if found and found.stage == stage.name:
            self.log.rewind(stage.name, found.window.k)
            self.log.say(f"resumed {self.path} at step {found.window.x.tau} of {stage.T}")
            then = config.parse(config.loads(found.config, "checkpoint"), str(self.path))
            (window,) = (one.window for one in then.stages if one.name == stage.name)
            return stage.retold(found.window, window.threshold)
        D, L = theta.layout.D, theta.layout.L
        self.log.say(f"mpiprop {__version__}: {self.run.prompt!r}, stage {stage.name}, {stage.T} steps, {D:,} trained numbers "
                     f"({L - D:,} ride along), on {stage.device} -> {self.folder}")
        return stage.open_window(rollout, theta)

    def _loop(self, h_dagger: PseudoInverse, rollout: Rollout) -> None:
        stage, began, clock = self.stage, monotonic(), perf_counter()
        first, saved, shown = self.window.x.tau, monotonic(), monotonic()
        checkpoint_s = preview_s = 0.0
        for self.window in propel(self.window, self.transport, h_dagger, p=stage.config.window.size, T=stage.T,
                                  threshold=stage.threshold(), predict=stage.predictor(rollout)):
            now = perf_counter()
            self._report(now - clock - preview_s, *self.transport.busy.since(clock), checkpoint_s, first, began)
            clock, self.rollout_s, checkpoint_s, preview_s = now, 0.0, 0.0, 0.0
            if monotonic() - saved > self.run.checkpoint.every_s:
                self._save()
                checkpoint_s, saved = perf_counter() - now, monotonic()
            if self.run.preview.every_s and monotonic() - shown > self.run.preview.every_s:
                results.preview(self.run, stage, self.window.x.theta, self.window.x.tau, self.folder)
                preview_s, shown = perf_counter() - now - checkpoint_s, monotonic()
            self._stay()

    def _report(self, seconds: float, evaluations: int, evaluate_s: float, checkpoint_s: float, first: int,
                began: float) -> None:
        window, T = self.window, self.stage.T
        losses = {name: fmean(step[name] for step in window.scalars if name in step) for name in window.scalars[-1]}
        self.log.record(stage=self.stage.name, tau=window.x.tau, k=window.k, stride=window.stride, e=window.e,
                        errors=list(window.errors), evaluations=evaluations, seconds=seconds, evaluate_s=evaluate_s,
                        rollout_s=self.rollout_s, transport_s=max(0.0, seconds - evaluate_s - self.rollout_s - checkpoint_s),
                        checkpoint_s=checkpoint_s, **losses)
        left = (monotonic() - began) / max(1, window.x.tau - first) * (T - window.x.tau)
        told = "  ".join(f"{name} {value:.3g}" for name, value in list(losses.items())[:4])
        self.log.progress(f"{self.stage.name} {window.x.tau:{len(str(T))}d}/{T}  T/K {window.x.tau / window.k:.2f}  stride "
                          f"{window.stride}  error {max(window.errors):.1e}  e {window.e:.1e}  {told}  "
                          f"ETA {int(left) // 60}:{int(left) % 60:02d}", last=window.x.tau == T)

    def _save(self) -> None:
        checkpoint.save(self.path, Checkpoint(self.window, self.stage.name, self.run.seed, self.text, self.complete))

    def _stay(self) -> None:
        """Raises Preempted if the run has been asked to leave."""
        if self.transport.asked():
            raise Preempted


def _difference(then: object, now: object, path: str = "") -> str:
    """The first key in which two configurations differ, of those that decide the result; empty if they agree."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [key for key in dict.fromkeys([*then, *now]) if key not in FREE_TO_CHANGE]
        return next((text for key in keys if (text := _difference(then.get(key), now.get(key), f"{path}.{key}"))), "")
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return next((text for i, (a, b) in enumerate(zip(then, now)) if (text := _difference(a, b, f"{path}.{i}"))), "")
    return "" if then == now else f"{path[1:]} was {then!r}, now {now!r}"
