"""The commands before and after a run: plan; export, generate, evaluate, report, inspect. Each takes its parsed arguments,
returns an exit code."""

import os
import shutil
from argparse import Namespace
from dataclasses import asdict

from mpiprop.run import folders
from mpiprop.core.errors import DONE, UserError
from mpiprop.io import FILMS, MESHES


def plan(args: Namespace) -> int:
    """Print the predicted speed-up of each window and number of shards, and the command of the fastest."""
    from mpiprop.cli import forecast

    print(forecast.text(args))
    return DONE


def export(args: Namespace) -> int:
    """Write one file of a run's newest state: a mesh (glb, obj, ply), a film of the turntable (gif, mp4), Gaussians
    (ply); or the folder of its generator."""
    form = args.format or (args.out.suffix[1:].lower() if args.out else "glb")
    folders.configured(args.run)
    if form == "generator":
        return _export_generator(args)
    _can_export(args, form)
    size = {"turntable.size" if form in FILMS else "mesh.resolution": args.resolution} if args.resolution else {}
    from mpiprop.run import outputs
    from mpiprop.shapes.clouds.base import Cloud

    stage, found = outputs.newest(args.run, overrides=[f"{key}={value}" for key, value in size.items()])
    theta = found.window.x.theta
    scene = stage.scene.load(theta, stage.T)
    cloud = scene.shape if form == "ply" and isinstance(scene.shape, Cloud) else None
    out = args.out or args.run / f"{'turntable' if form in FILMS else 'cloud' if cloud else 'mesh'}.{form}"
    if form in FILMS:
        from mpiprop.io.pictures import film
        turntable = stage.run.turntable
        views = stage.views[0].turntable(turntable.frames, (turntable.size, turntable.size))
        views = views.farther(outputs.farther(stage, theta, outputs.VIEWS))
        film(outputs.frames(stage, theta, views), out, turntable.fps)
    elif cloud:
        from mpiprop.io.files import write_cloud
        if args.resolution:
            raise UserError("--resolution: Gaussians are written as they are; leave it out")
        write_cloud(cloud.rows(), out)
    else:
        from mpiprop.io.files import write
        from mpiprop.io.mesh import extract
        write(extract(scene, **asdict(stage.run.mesh) | ({"texture": 0, "say": _bare} if form == "ply" else {})), out)
    print(out)
    return DONE


def _export_generator(args: Namespace) -> int:
    from mpiprop.run.generator import Trained

    if args.resolution:
        raise UserError("--resolution: a generator has none; leave it out")
    out = args.out or args.run / "generator"
    Trained.read(str(args.run)).write(out)
    print(out)
    return DONE


def _can_export(args: Namespace, form: str) -> None:
    """Raises UserError for arguments that would otherwise fail only after the work is done."""
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
    """Print the line about a mesh without the part about its texture, which a PLY file does not have."""
    print(line.partition(" with their own texture")[0])


def generate(args: Namespace) -> int:
    """Write meshes, turntables and a contact sheet of prompts, made by a trained generator."""
    folders.configured(folders.place(args.generator))
    from mpiprop.cli import generation

    generation.generate(args)
    return DONE


def evaluate(args: Namespace) -> int:
    """Print CLIP measures of runs, as a table or JSON."""
    for folder in args.runs:
        if not folders.objects(folder):
            folders.configured(folder)
    from mpiprop.cli import evaluation

    summary = evaluation.evaluate(args)
    print(summary.to_json() if args.json else summary)
    return DONE


def report(args: Namespace) -> int:
    """Write one HTML page about one run or several."""
    if missing := [folder for folder in args.runs if not folder.is_dir()]:
        raise UserError(f"{missing[0]}: no such folder")
    from mpiprop import report as page

    out = args.out or args.runs[0] / "report.html"
    page.write([page.RunSummary.read(folder) for folder in args.runs], out)
    print(out)
    return DONE


def inspect(args: Namespace) -> int:
    """Print what a checkpoint holds."""
    from mpiprop.run import checkpoint_file

    print(checkpoint_file.inspect(args.run / "window.h5" if args.run.is_dir() else args.run))
    return DONE


def view(args: Namespace) -> int:
    """A page in the browser, until Ctrl-C."""
    folders.configured(args.run)
    from mpiprop.cli.view import Viewer

    viewer = Viewer(args.run, args.host, args.port)
    print(f"{args.run}: look at {viewer.address} (Ctrl-C ends it)", flush=True)
    viewer.follow()
    return DONE


def schema(args: Namespace) -> int:
    """Print the JSON schema of configurations."""
    import json

    from mpiprop.config import json_schema

    print(json.dumps(json_schema.schema(), indent=1))
    return DONE
