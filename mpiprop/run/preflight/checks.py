"""Checks before the first step everything that a run needs, and describes its plan in a few lines.

Rank 0 checks the files to be written, rank 1 (or the only rank) the stages and their models, every rank its memory.
"""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage, which

import torch

from mpiprop.run import checkpoint
from mpiprop.config.schema import Run, WindowConfig
from mpiprop.core.errors import UserError
from mpiprop.transport.world import World
from mpiprop.views.reference import Reference
from mpiprop.run.generator import beginning
from mpiprop.run.preflight import memory, needs
from mpiprop.run.preflight.memory import Pool, size
from mpiprop.run.preflight.stages import Survey, survey


@dataclass(frozen=True)
class Rank:
    """The memory of a rank."""

    pools: dict[str, Pool]  # "host", and "gpu" where it computes on one
    resident: int  # bytes of host memory in use already


@dataclass(frozen=True)
class Verdict:
    """The result of the checks, as lines for the user."""

    plan: tuple[str, ...]
    warnings: tuple[str, ...]


def check(world: World, run: Run, begin: int, device: torch.device, reference: Reference | None, folder: Path,
          under_way: bool) -> Verdict:
    """Check `run` from stage number `begin` on. Collective: returns the same on every rank.

    under_way: that stage continues from the checkpoint in `folder`
    Raises UserError for what cannot work.
    """
    world.together(lambda: _files(run, folder), by=0)
    other = None
    if run.from_ and not begin and not under_way:
        other = world.together(lambda: beginning(run) or checkpoint.load(Path(run.from_) / "window.h5"), by=1)
    stages = world.together(lambda: survey(run, begin, device, reference, under_way, other), by=1)
    ranks = world.gather(Rank({"host": memory.host()} | ({"gpu": memory.gpu(device)} if device.type == "cuda" else {}),
                              memory.resident()))
    return world.together(lambda: _judged(run, begin, device, stages, ranks, folder, under_way), by=0)


def _files(run: Run, folder: Path) -> None:
    """Raises UserError where the run folder cannot be written, or a package that its files need is missing."""
    place = _existing(folder)
    if not place.is_dir():
        raise UserError(f"{folder}: cannot be a folder: {place} is a file; give another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written: no right to write in {place}; give another --out")
    if os.environ.get("MPIPROP_TENSORBOARD") == "1":
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise UserError("MPIPROP_TENSORBOARD=1: TensorBoard is not installed; pip install 'mpiprop[tensorboard]'") from None
    for key, wanted, package in (("faces", run.mesh.faces, "fast_simplification"), ("texture", run.mesh.texture, "xatlas")):
        if wanted and not find_spec(package):
            raise UserError(f"mesh.{key}: needs the package {package.replace('_', '-')}, which is not installed; install it, "
                            f"or set mesh.{key}: 0")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _judged(run: Run, begin: int, device: torch.device, stages: Sequence[Survey], ranks: Sequence[Rank], folder: Path,
            under_way: bool) -> Verdict:
    """The verdict on rank 0. Raises UserError where memory or the disk cannot suffice."""
    warnings = [note for stage in stages for note in stage.notes]
    windows = [run.stages[begin + i].window for i in range(len(stages))]
    likely = [0.0] * len(ranks)
    for i, (stage, window) in enumerate(zip(stages, windows)):
        last = i + 1 == len(stages)
        grid = 0 if not stage.marched else run.mesh.resolution if last else stages[i + 1].grid
        wanted = [needs.of_rank(run, stage, window, rank, len(ranks), device, grid, last) for rank in range(len(ranks))]
        impossible, tight = memory.judge([rank.pools for rank in ranks], wanted)
        if impossible:
            raise UserError(f"stage {stage.work.name}: {impossible[0]}")
        warnings += [f"warning: stage {stage.work.name}: {line}" for line in tight]
        likely = [max(most, *(need.likely + (rank.resident if kind == "host" else 0) for kind, need in kinds.items()))
                  for most, rank, kinds in zip(likely, ranks, wanted)]
    sure, kept = (max(map(needs.checkpoint, works, windows)) for works in zip(*((one.work, one.most) for one in stages)))
    results, free = needs.results(run, stages[-1]), disk_usage(_existing(folder)).free
    if (needed := (1 if under_way else 2) * sure + results) > free:
        raise UserError(f"{folder}: the disk has {size(free)} left, the run needs {size(needed)} (two checkpoints of "
                        f"{size(sure)}, results of about {size(results)}); make room, or give an --out on another disk")
    if 2 * kept + results > free:
        warnings.append(f"warning: {folder}: the disk has {size(free)} left; checkpoints of a cloud that grows as far as it "
                        f"may take {size(2 * kept)}")
    busy = 1 + max(window.size * window.shards for window in windows)
    if len(ranks) > max(busy, 2):
        warnings.append(f"warning: {len(ranks)} ranks, of which the windows keep {busy} busy (1 + window.size x window.shards)")
    others = f", {size(max(likely[1:]))} on each other" if len(ranks) > 1 else ""
    grows = "" if kept == sure else f", up to {size(kept)} as the cloud grows"
    films = "turntable.gif and .mp4" if which("ffmpeg") else "turntable.gif (no .mp4: ffmpeg is not installed)"
    return Verdict((*_table(stages, windows, len(ranks)),
                    f"ranks       {len(ranks)} on {device.type}",
                    f"memory      about {size(likely[0])} on rank 0{others} (estimated)",
                    f"checkpoint  {size(sure)}{grows}, every {run.checkpoint.every_s:g} s",
                    f"results     {folder}: {films}, mesh.glb, report.html"), tuple(dict.fromkeys(warnings)))


def _table(stages: Sequence[Survey], windows: Sequence[WindowConfig], ranks: int) -> list[str]:
    """An aligned table: a heading, and a line for each stage."""
    rows = [("stage", "steps", "trained", "+ stored", "MPI a step", "window", "views a step", "models")]
    for stage, window in zip(stages, windows):
        work = stage.work
        rows.append((work.name, f"{work.T:,}", f"{work.D:,}", f"{work.L - work.D:,}", size(work.message) if ranks > 1 else "-",
                     f"{window.size}" + (f" x {window.shards} shards" if window.shards > 1 else ""),
                     "+".join(map(str, work.batches)), ", ".join(stage.priors) or "none"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    widths[0] = max(widths[0], 10)
    return ["  ".join(cell.ljust(width) if j in (0, len(row) - 1) else cell.rjust(width)
                      for j, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
