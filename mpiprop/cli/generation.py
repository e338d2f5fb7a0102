"""The command `generate`: meshes, turntables and a contact sheet of prompts, by a trained generator.

The files of an object depend on the generator, the prompt and the options alone: any number of ranks makes the same
ones. NAME.json, which is written last, records what they were made of. What is whole is not made again.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, replace
from hashlib import sha256
from math import ceil, cos, pi, sqrt
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from mpiprop.config.prompts import read_prompts
from mpiprop.core.errors import RunError, UserError
from mpiprop.io import FILMS, MESHES
from mpiprop.io.files import atomic, made, write
from mpiprop.io.mesh import Mesh, extract, real_size
from mpiprop.io.pictures import film, has_ffmpeg, png
from mpiprop.io.sheet import TEXT, contact_sheet
from mpiprop.metrics.pictures import read
from mpiprop.metrics.summary import Subject, origin
from mpiprop.objective.scene import Scene
from mpiprop.render.mesh import Mesh as MeshRenderer
from mpiprop.render.raster import clip
from mpiprop.run import folders
from mpiprop.run.generator import Maker, Trained
from mpiprop.run.outputs import FARTHER
from mpiprop.shapes.fields.base import Field
from mpiprop.shapes.generators.base import Text
from mpiprop.shapes.surfaces.base import Surface
from mpiprop.transport.world import World
from mpiprop.views.cameras import Views

LONGEST = 60  # letters of a file's name that come from a prompt
SHEET = "contact-sheet.png"
ON_SHEET = 200  # objects at most

Task = tuple[str, ...]
"""One prompt, of an object, or two, of a film between them."""


def generate(args: Namespace) -> None:
    """Makes what the command's arguments ask for, on all ranks together.

    Raises UserError for arguments that do not fit, and, after all others are made, RunError where an object is empty.
    """
    world = World.open()
    prompts = world.together(lambda: _prompts(args))
    trained = world.together(lambda: Trained.read(args.generator), by=0)  # a run may write the next state meanwhile
    run = trained.run
    if args.resolution:
        trained = replace(trained, run=replace(run, mesh=replace(run.mesh, resolution=args.resolution)))
    folder = args.out or (Path("runs") if args.generator == "builtin" else Path(args.generator)) / "generated"
    torch.set_num_threads(run.threads)
    maker = world.together(lambda: Maker(trained, world.device(args.device)))
    notes = world.together(lambda: maker.check(prompts))
    if trained.step < trained.stage.steps:
        notes = [f"{args.generator}: is at step {trained.step} of {trained.stage.steps}", *notes]
    shop = Workshop(trained, maker, folder, args.format)
    tasks: list[Task] = [(prompt,) for prompt in prompts]
    if args.interpolate:
        tasks += zip(prompts, prompts[1:])
    todo = world.together(lambda: shop.missing(tasks), by=0)
    if len(todo) < len(tasks):
        notes.append(f"{folder}: has {len(tasks) - len(todo)} of {len(tasks)} already")
    if world.root:
        print(*notes, sep="\n", end="\n" if notes else "", flush=True)
    failed = world.together(lambda: shop.work(todo[world.rank::world.size]))
    failures = [failure for some in world.gather(failed) for failure in some]
    world.together(lambda: shop.sheet([prompt for prompt in prompts if prompt not in dict(failures)]), by=0)
    if failures:
        prompt, why = failures[0]
        raise RunError(f"{len(failures)} of {len(todo)} not made, the others are there; {prompt!r}: {why}")


def _prompts(args: Namespace) -> list[str]:
    """The prompts that the arguments name, each once. Raises UserError for arguments that do not fit."""
    prompts = [*filter(None, map(str.strip, args.prompts)), *(read_prompts(str(args.listed)) if args.listed else ())]
    if not prompts:
        raise UserError('nothing to generate: give prompts, "a pink chair", or --prompts FILE')
    prompts = list(dict.fromkeys(prompts))
    if args.interpolate and not set(FILMS) & set(args.format):
        raise UserError(f"--interpolate: makes films; add one of {', '.join(FILMS)} to --format")
    if args.interpolate and len(prompts) < 2:
        raise UserError("--interpolate: needs two prompts")
    if "mp4" in args.format and not has_ffmpeg():
        raise UserError("mp4 needs ffmpeg on PATH; install it or take gif")
    return prompts


def name_of(prompt: str) -> str:
    """The name of a prompt's files: its words with dashes between, and part of a checksum where other prompts have the
    same words."""
    name = folders.slug(prompt, LONGEST)
    return name if name.replace("-", " ") == prompt else f"{name}-{sha256(prompt.encode()).hexdigest()[:8]}"


def still_views(path: Path) -> list[ndarray]:
    """The views [H, H, 3] of an object, which its file has side by side."""
    strip = read(path)
    return np.split(strip, strip.shape[1] // strip.shape[0], 1)


def generated(folder: Path) -> list[tuple[Subject, str]]:
    """The objects that `generate` has made in a folder, whose `run` is the file of their views, and their prompts. Raises
    UserError for one whose record is missing or was changed."""
    found = []
    for path in folders.objects(folder):
        record = path.with_name(path.name.removesuffix(folders.VIEWS) + "json")
        try:
            told = json.loads(record.read_text())
            ((prompt,), by) = told["prompts"], told["trained"]
            subject = Subject(str(path), **by, finished=True)  # `generate` told of a generator that was not
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{record}: does not say what {path.name} was made of; generate it anew") from None
        found.append((subject, prompt))
    return found


class Found(Surface):
    """The surface that was found of a field, with the field's own features."""

    def __init__(self, field: Field, mesh: Mesh, device: torch.device) -> None:
        super().__init__()
        self.radius, self.field = field.radius, field
        self.mesh = torch.from_numpy(mesh.vertices).to(device), torch.from_numpy(mesh.faces).long().to(device)

    def surface(self) -> tuple[Tensor, Tensor]:
        return self.mesh

    def features(self, x: Tensor) -> Tensor:
        return self.field.features(x)


class Workshop:
    """What objects are made with, and the folder that they go to."""

    def __init__(self, trained: Trained, maker: Maker, folder: Path, formats: Sequence[str]) -> None:
        self.run, self.maker, self.folder = trained.run, maker, folder
        self.meshes = [form for form in formats if form in MESHES]
        self.films = [form for form in formats if form in FILMS]
        self.made_of = {"generator": trained.digest, "trained": origin(trained.run, trained.stage, trained.step),
                        "mesh": asdict(self.run.mesh), "turntable": asdict(self.run.turntable),
                        "views": [self.run.preview.views, self.run.preview.size]}

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks whose files are not all there, whole and made as they would be now. Makes the folder."""
        made(self.folder)
        return [task for task in tasks if not set(self.wanted(task)) <= self.kept(task).keys()]

    def wanted(self, task: Task) -> list[str]:
        """The names of a task's files."""
        name = "--".join(map(name_of, task))
        forms = self.films if len(task) > 1 else [folders.VIEWS, *self.meshes, *self.films]
        return [f"{name}.{form}" for form in forms]

    def kept(self, task: Task) -> dict[str, int]:
        """The files of a task that are there, whole and made as they would be now, with their lengths (bytes)."""
        try:
            record = json.loads(self.record(task).read_text())
            if {**record, "files": {}} != self.contents(task, {}):
                return {}
            return {name: length for name, length in record["files"].items()
                    if (self.folder / name).stat().st_size == length}
        except (OSError, ValueError, KeyError, AttributeError):  # none, or one that was changed
            return {}

    def views_of(self, prompt: str) -> Path:
        return self.folder / f"{name_of(prompt)}.{folders.VIEWS}"

    def record(self, task: Task) -> Path:
        return self.folder / f"{'--'.join(map(name_of, task))}.json"

    def contents(self, task: Task, files: dict[str, int]) -> dict[str, object]:
        """What the record of a task says."""
        return json.loads(json.dumps({"prompts": task, **self.made_of, "files": files}))

    def work(self, tasks: Sequence[Task]) -> list[tuple[str, str]]:
        """Does the tasks. Returns the prompts that nothing came of, and why."""
        failed = []
        for task in tasks:
            kept = self.kept(task)
            try:
                with torch.no_grad():
                    self.between(*task) if len(task) > 1 else self.one(*task)
            except RunError as error:
                failed.append((" to ".join(task), str(error)))
                continue
            files = kept | {name: (self.folder / name).stat().st_size for name in self.wanted(task)}
            with atomic(self.record(task)) as part:
                part.write_text(json.dumps(self.contents(task, files), indent=1) + "\n")
            print(f"{' to '.join(task)}: {self.folder / self.wanted(task)[len(task) == 1]}", flush=True)
        return failed

    def one(self, prompt: str) -> None:
        """Writes the files of a prompt's object."""
        scene, keys = self.maker.object(self.maker.text(prompt)), asdict(self.run.mesh) | {"height_m": 0.0}
        if not {"glb", "obj"} & set(self.meshes):
            keys["texture"] = 0
        mesh = extract(scene, say=_quiet, **keys)
        for form in self.meshes:
            write(real_size(mesh, self.run.mesh.height_m), self.folder / f"{name_of(prompt)}.{form}")
        shown, turn, still = self.shown(scene, mesh), self.run.turntable, self.run.preview
        views = self.turntable(turn.frames, turn.size)
        factor = _farther(views, [mesh])
        strip = self.frames(shown, self.turntable(still.views, still.size).farther(factor))
        png(torch.cat(list(strip), 1), self.views_of(prompt))
        if self.films:
            frames = self.frames(shown, views.farther(factor))
            for form in self.films:
                film(frames, self.folder / f"{name_of(prompt)}.{form}", turn.fps)

    def between(self, first: str, second: str) -> None:
        """Writes a film that goes around while the first prompt's object becomes the second's and the first's again."""
        turn, (a, b) = self.run.turntable, map(self.maker.text, (first, second))
        views, scenes, meshes = self.turntable(turn.frames, turn.size), [], []
        keys = asdict(self.run.mesh) | {"faces": 0, "texture": 0, "height_m": 0.0}
        keys["resolution"] = min(keys["resolution"], max(2, turn.size // 2))  # a cell of two pixels
        for i in range(turn.frames):
            share = (1 - cos(2 * pi * i / turn.frames)) / 2
            scenes.append(self.maker.object(Text(a.pooled.lerp(b.pooled, share), a.tokens.lerp(b.tokens, share))))
            meshes.append(extract(scenes[-1], say=_quiet, **keys))
        views = views.farther(_farther(views, meshes))
        frames = torch.cat([self.frames(self.shown(scene, mesh), views[i:i + 1])
                            for i, (scene, mesh) in enumerate(zip(scenes, meshes))])
        for name in self.wanted((first, second)):
            film(frames, self.folder / name, turn.fps)

    def turntable(self, n: int, size: int) -> Views:
        return self.maker.views.turntable(n, (size, size))

    def shown(self, scene: Scene, mesh: Mesh) -> Scene:
        """The scene with the surface that was found in place of the field, which is drawn many times as fast."""
        assert isinstance(scene.shape, Field)
        shown = copy(scene)
        shown.shape, shown.renderer = Found(scene.shape, mesh, scene.device), MeshRenderer()
        return shown

    def frames(self, scene: Scene, views: Views) -> Tensor:
        """Pictures [B, H, W, 3] of the scene, on the CPU."""
        return torch.cat([scene.render(views[i:i + 1], self.maker.tau, needs=()).rgb.clamp(0, 1).cpu()
                          for i in range(len(views))])

    def sheet(self, prompts: Sequence[str]) -> None:
        """Writes the contact sheet: a row of views of each prompt's object."""
        size = self.run.preview.size
        rows = [(prompt, [torch.from_numpy(view).float() / 255 for view in still_views(self.views_of(prompt))])
                for prompt in prompts[:ON_SHEET]]
        if rows:
            wide, high = len(rows[0][1]) * size, TEXT + size
            contact_sheet(rows, self.folder / SHEET, ceil(sqrt(len(rows) * high / wide)))
            more = f" (the first {ON_SHEET} of {len(prompts)})" if len(prompts) > ON_SHEET else ""
            print(f"{self.folder / SHEET}{more}", flush=True)


def _farther(views: Views, meshes: Sequence[Mesh]) -> float:
    """How many times as far away the cameras need to be to see all of the meshes; at most the last of FARTHER."""
    corners = torch.cat([torch.from_numpy(mesh.vertices) for mesh in meshes])

    def sees(factor: float) -> bool:
        x, y, _, w = clip(views.farther(factor), corners).unbind(-1)
        return bool((torch.maximum(x.abs(), y.abs()) < w).all())
    return next((factor for factor in FARTHER[:-1] if sees(factor)), FARTHER[-1])


def _quiet(line: str) -> None:
    pass
