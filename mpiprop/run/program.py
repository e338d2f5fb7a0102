"""The SPMD program: stages in order, rank 0 rolling out and saving, the others evaluating.

Everything that a run does besides the algorithm stands around one loop, `for window in propel(...)`.
"""

import os
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from mpiprop import transport
from mpiprop.run import checkpoint, folders, inputs, preemption
from mpiprop.conditioning.base import Conditions
from mpiprop.config import loader
from mpiprop.config.schema import Run
from mpiprop.core.errors import DONE, FAILED, PREEMPTED, Preempted, RunError, UserError, exit_code
from mpiprop.run.log import Log
from mpiprop.core.memory import recycle_large_blocks
from mpiprop.run.driver import Drive
from mpiprop.run.preflight import checks
from mpiprop.run.stage import Stage
from mpiprop.transport.base import End
from mpiprop.transport.world import World
from mpiprop.views.reference import Reference

FREE_TO_CHANGE = ("name", "device", "threads", "faults", "patience_s", "window", "checkpoint", "preview", "turntable",
                  "mesh", "image", "file", "unknown_words")  # on --resume; pictures and prompts count by their content


def main(name: str, overrides: list[str], out: Path | None, resume: bool, check: bool = False) -> int:
    """Run configuration `name` on all ranks, or with `check` only as far as its first step; the exit code."""
    log = Log()
    try:
        world = World.open()
        log = Log(rank=world.rank)
        return Program(world, log).run(name, overrides, out, resume, check)
    except (UserError, RunError) as error:
        log.say(f"mpiprop: {error}", error=True)
        return exit_code(error)


class Program:
    """One rank's part in a run."""

    def __init__(self, world: World, log: Log) -> None:
        self.world, self.log = world, log

    def run(self, name: str, overrides: list[str], out: Path | None, resume: bool, check: bool) -> int:
        text, folder, self.reference = self.world.together(lambda: self._read(name, overrides, out, resume), by=0)
        run = self.world.together(lambda: loader.parse(loader.loads(text, name), name))
        torch.set_num_threads(run.threads)
        recycle_large_blocks()
        self.device = self.world.together(lambda: self.world.device(run.device))
        self.world.together(lambda: self.world.prove(self.device))
        if crowd := self.world.crowded(self.device):
            self.log.say(crowd)
        goes_on = resume and (folder / "window.h5").exists()
        if goes_on and not check:
            self.world.together(lambda: self._enter(folder), by=0)
        begin, finished = self.world.together(lambda: self._standing(folder, run, text) if goes_on else (0, False), by=0)
        if finished:
            self.log.say(f"{folder}: finished already")
            return DONE
        verdict = checks.check(self.world, run, begin, self.device, self.reference, folder, goes_on)
        if not goes_on and not check:
            self.world.together(lambda: self._enter(folder), by=0)
        for line in (*verdict.plan, *verdict.warnings):
            self.log.say(line)
        if check:
            return DONE
        self.world.together(lambda: self._put_down(folder, text, goes_on), by=0)
        preemption.resumes(name, overrides, folder)
        for index in range(begin, len(run.stages)):
            code = self._stage(run, text, index, folder)
            if code is not None:
                preemption.over()
                return code
            preemption.release()
        return DONE

    def _read(self, name: str, overrides: list[str], out: Path | None,
              resume: bool) -> tuple[str, Path, Reference | None]:
        """The resolved configuration, the run folder, which may not exist yet, and the picture to start from, if any."""
        run = loader.load(name, overrides)
        inputs.check(name, run)
        reference = None
        if run.image is not None:
            from mpiprop.io import photograph
            reference = photograph.read(run.image, run.reference)
            run = replace(run, reference=replace(run.reference, sha256=reference.sha256))
        folder = folders.choose(Path(name).stem if name.endswith(".yaml") else name, run, out, resume)
        return loader.resolved(run), folder, reference

    def _enter(self, folder: Path) -> None:
        """Makes and locks the run folder, and logs to it from now on."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = folders.lock(folder)
            self.log = Log(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        preemption.watch(folder)

    def _standing(self, folder: Path, run: Run, text: str) -> tuple[int, bool]:
        """The stage that the run in `folder` goes on with, and whether nothing is left to do."""
        found = checkpoint.load(folder / "window.h5")
        then = loader.loads(found.config, "checkpoint")
        if run.reference.sha256 != then.get("reference", {}).get("sha256"):
            raise UserError(f"{folder / 'window.h5'}: was begun with another picture than {run.image}; "
                            "give the same one, or another --out")
        then = loader.loads(loader.resolved(loader.parse(then, str(folder / "window.h5"))), "checkpoint")
        if difference := _difference(then, loader.loads(text, "now")):
            raise UserError(f"{folder / 'window.h5'}: is of another configuration: {difference}; "
                            "give the same one, or another --out")
        return run.index(found.stage), (folder / "done").exists()

    def _put_down(self, folder: Path, text: str, goes_on: bool) -> None:
        """Puts the configuration and the picture into the run folder, and takes out what an earlier run left."""
        from mpiprop.io.files import atomic, sweep

        sweep(folder)
        if not goes_on:
            for stale in ("done", "metrics.jsonl", "results.json", "cloud.ply"):
                (folder / stale).unlink(missing_ok=True)
        if self.reference is not None:
            from mpiprop.io.pictures import png
            png(self.reference.rgba, folder / "reference.png")
        with atomic(folder / "config.yaml") as part:  # cut short, --resume would not know the folder again
            part.write_text(text)

    def _stage(self, run: Run, text: str, index: int, folder: Path) -> int | None:
        """One stage on this rank: None if another follows, else the exit code of the run."""
        world = self.world
        stage = world.together(lambda: Stage(run, index, self.device, self.reference))
        drive = Drive(run, text, stage, folder, self.log, index + 1 == len(run.stages)) if world.root else None
        layout = world.together(lambda: drive.begin(), by=0)
        embeddings = self._conditions(stage, folder)
        stage.read(embeddings)
        evaluates = world.size == 1 or not world.root
        unit = world.together(lambda: stage.unit(embeddings) if evaluates else None)
        preemption.hold()
        service = transport.connect(world, unit, layout, self.device, lambda: bool(preemption.asked()),
                                    shards=stage.config.window.shards,
                                    patience=run.patience_s, go_on=run.faults == "continue", say=self.log.say)
        if isinstance(service, End):
            return self._after(service.code, service.shrink)
        code = FAILED
        try:
            code = drive(service)
        except Preempted:
            code = PREEMPTED
        except (UserError, RunError) as error:
            self.log.say(f"mpiprop: {error}", error=True)
            code = exit_code(error)
        except Exception as error:
            self.log.say(f"mpiprop: {type(error).__name__}: {error} (a defect; the traceback is in {folder / 'run.log'})",
                         error=True)
            self.log.note(traceback.format_exc())
        finally:
            shrink = service.close(code)
        return self._after(code, shrink)

    def _conditions(self, stage: Stage, folder: Path) -> list[Conditions | None]:
        """Returns the conditions of each term. One prompt is encoded by one rank; several are read from a store that
        all ranks write."""
        world = self.world
        stores = world.together(lambda: stage.stores(folder))
        if not stores:
            return world.together(stage.embeddings, by=1)
        if world.root and (missing := sum(store.missing for store in stores.values())):
            self.log.say(f"encoding {missing} texts of {len(stage.run.prompts)} prompts")
        part, parts = (world.rank - 1, world.size - 1) if world.size > 1 else (0, 1)  # root loads no prior
        for term, store in stores.items():
            world.together(lambda: None if part < 0 else stage.write(store, term, part, parts))
            world.together(store.verify)
        return world.together(lambda: stage.embeddings(stores))

    def _after(self, code: int | None, shrink: bool) -> int | None:
        """The end of a stage on this rank, without those that died in it if `shrink`."""
        if shrink and code is not None:
            os._exit(code)  # MPI cannot be finalised with ranks missing
        if shrink:
            self.world = self.world.shrunk()
        return code


def _difference(then: object, now: object, path: str = "") -> str:
    """The first key in which two configurations differ, of those that decide the result; empty if they agree."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [key for key in dict.fromkeys([*then, *now]) if key not in FREE_TO_CHANGE]
        return next((text for key in keys if (text := _difference(then.get(key), now.get(key), f"{path}.{key}"))), "")
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return next((text for i, (a, b) in enumerate(zip(then, now)) if (text := _difference(a, b, f"{path}.{i}"))), "")
    return "" if then == now else f"{path[1:]} was {then!r}, now {now!r}"
