"""The commands before and after a run: plan; export, evaluate, report, inspect. Each takes its parsed arguments, returns an
exit code."""

import os
import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import config
from .core.errors import DONE, UserError
from .export import FILMS, MESHES

if TYPE_CHECKING:
    from .core.theta import Theta
    from .recipe import Stage


def plan(args: Namespace) -> int:
    """What to expect of each window and number of shards on so many ranks, and the command for the best."""
    from . import forecast

    print(forecast.told(args))
    return DONE


def export(args: Namespace) -> int:
    """One file of a run's newest state: a mesh (glb, obj, ply), a film of the turntable (gif, mp4), or Gaussians (ply)."""
    form = args.format or (args.out.suffix[1:].lower() if args.out else "glb")
    _run(args.run)
    _can_export(args, form)
    size = {"turntable.size" if form in FILMS else "mesh.resolution": args.resolution} if args.resolution else {}
    stage, theta = _open(args.run, [f"{key}={value}" for key, value in size.items()])
    scene = stage.scene.load(theta, stage.T)
    rows = scene.cloud() if form == "ply" else None
    out = args.out or args.run / f"{'turntable' if form in FILMS else 'cloud' if rows else 'mesh'}.{form}"
    if form in FILMS:
        from . import results
        from .export.pictures import film
        turntable = stage.run.turntable
        views = stage.views[0].turntable(turntable.frames, (turntable.size, turntable.size))
        views = views.farther(results.farther(stage, theta, results.VIEWS))
        film(results.frames(stage, theta, views), out, turntable.fps)
    elif rows:
        from .export.files import write_cloud
        if args.resolution:
            raise UserError("--resolution: Gaussians are written as they are; leave it out")
        write_cloud(rows, out)
    else:
        from .export.files import write
        from .export.mesh import extract
        write(extract(scene, **asdict(stage.run.mesh) | ({"texture": 0, "say": _bare} if form == "ply" else {})), out)
    print(out)
    return DONE


def _can_export(args: Namespace, form: str) -> None:
    """Raises UserError for what would otherwise fail only after the work is done."""
    if form not in (*MESHES, *FILMS) or args.out and args.out.suffix.lower() != f".{form}":
        wanted = f".{args.format}, as --format says" if args.format else ", ".join(f".{name}" for name in (*MESHES, *FILMS))
        raise UserError(f"--out {args.out}: needs to end in {wanted}")
    if not (folder := args.out.parent if args.out else args.run).is_dir():
        raise UserError(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK) or args.out and args.out.is_dir():
        raise UserError(f"{args.out or folder}: cannot be written")
    if form == "mp4" and not shutil.which("ffmpeg"):
        raise UserError("mp4 needs ffmpeg on PATH; install it or take --format gif")


def _bare(line: str) -> None:
    """What is said of a mesh, without its texture, which a PLY file does not carry."""
    print(line.partition(" with their own texture")[0])


def evaluate(args: Namespace) -> int:
    """CLIP measures over the views of runs, as a table or JSON."""
    import torch

    from . import evaluate as measures

    objects = []
    for folder in args.runs:
        pictures = sorted((folder / "views").glob("*.png"))
        if not pictures:
            raise UserError(f"{folder}: has no views/*.png yet; finish the run first (--resume)")
        if not (prompt := _run(folder).prompt):
            raise UserError(f"{folder}: was made from a picture without prompt=..., which is what its views are measured by")
        objects.append((prompt, torch.stack([measures.picture(path) for path in pictures])))
    prompts = measures.read_prompts(args.prompts) if args.prompts else measures.builtin_prompts()
    judge = measures.Judge(args.clip) if args.clip else measures.Judge()
    result = measures.evaluate(objects, prompts, judge, args.reference)
    print(result.to_json() if args.json else result)
    return DONE


def report(args: Namespace) -> int:
    """One HTML page of one run or several."""
    from . import report as page

    out = args.out or args.runs[0] / "report.html"
    page.write([page.RunSummary.read(folder) for folder in args.runs], out)
    print(out)
    return DONE


def inspect(args: Namespace) -> int:
    """What a checkpoint holds."""
    from .checkpoint_file import inspect as told

    print(told(args.run / "window.h5" if args.run.is_dir() else args.run))
    return DONE


def _run(folder: Path, overrides: Sequence[str] = ()) -> config.Run:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml)")
    return config.load(str(folder / "config.yaml"), overrides)


def _open(folder: Path, overrides: Sequence[str] = ()) -> "tuple[Stage, Theta]":
    """The stage that the run is in, and its newest theta."""
    run = _run(folder, overrides)
    if not (folder / "window.h5").is_file():
        raise UserError(f"{folder}: has no checkpoint (window.h5) yet")
    import torch

    from . import checkpoint
    from .recipe import Stage

    torch.set_num_threads(max(run.threads, torch.get_num_threads()))
    found = checkpoint.load(folder / "window.h5")
    index = [stage.name for stage in run.stages].index(found.stage)
    return Stage(run, index, torch.device("cpu")), found.window.x.theta
