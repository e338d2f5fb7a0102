"""The commands before and after a run: plan; export, evaluate, report, inspect. Each takes its parsed arguments, returns an
exit code."""

from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import torch

from . import checkpoint, config, results
from .core.errors import DONE, UserError
from .core.theta import Theta
from .recipe import Stage


def plan(args: Namespace) -> int:
    """What to expect of each window and number of shards on so many ranks, and the command for the best."""
    from . import forecast

    print(forecast.told(args))
    return DONE


def export(args: Namespace) -> int:
    """One file of a run's newest state: a mesh (glb, obj, ply), a film of the turntable (gif, mp4), or Gaussians (ply)."""
    stage, theta = _open(args.run)
    film = args.format in ("gif", "mp4")
    rows = stage.scene.load(theta, stage.T).cloud() if args.format == "ply" else None
    out = args.out or args.run / f"{'turntable' if film else 'cloud' if rows else 'mesh'}.{args.format}"
    if args.resolution is not None and args.resolution < 2:
        raise UserError(f"--resolution {args.resolution}: needs at least 2")
    if film:
        from .export.pictures import film as write_film
        turntable = replace(stage.run.turntable, size=args.resolution or stage.run.turntable.size)
        views = stage.views[0].turntable(turntable.frames, (turntable.size, turntable.size))
        write_film(results.frames(stage, theta, views), out, turntable.fps)
    elif rows:
        from .export.files import write_cloud
        write_cloud(rows, out)
    else:
        from .export.files import write
        from .export.mesh import extract
        mesh = replace(stage.run.mesh, resolution=args.resolution or stage.run.mesh.resolution)
        write(extract(stage.scene.load(theta, stage.T), **asdict(mesh)), out)
    print(out)
    return DONE


def evaluate(args: Namespace) -> int:
    """CLIP measures over the views of runs, as a table or JSON."""
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
    print(checkpoint.inspect(args.file))
    return DONE


def _run(folder: Path) -> config.Run:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml)")
    return config.load(str(folder / "config.yaml"))


def _open(folder: Path) -> tuple[Stage, Theta]:
    """The stage that the run is in, and its newest theta."""
    run = _run(folder)
    torch.set_num_threads(max(run.threads, torch.get_num_threads()))
    found = checkpoint.load(folder / "window.h5")
    index = [stage.name for stage in run.stages].index(found.stage)
    return Stage(run, index, torch.device("cpu")), found.window.x.theta
