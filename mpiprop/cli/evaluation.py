"""The command `evaluate`: CLIP measures of the objects of runs."""

import sys
from argparse import Namespace
from dataclasses import asdict, replace
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path

import torch
from torch import Tensor

from mpiprop.cli.generation import generated, still_views
from mpiprop.run import outputs, folders
from mpiprop.config.prompts import read_prompts
from mpiprop.config.schema import Run, StageConfig
from mpiprop.core.errors import RunError, UserError
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import SCENES, SHAPES
from mpiprop.corpus.truth import Truth, truth
from mpiprop.io.mesh import extract
from mpiprop.metrics.judge import Judge
from mpiprop.metrics.measures import Moments, frechet, measure
from mpiprop.metrics.pictures import pixels, read
from mpiprop.metrics.protocols import BY_NAME, Protocol
from mpiprop.metrics.reference import moments
from mpiprop.metrics.summary import Subject, Summary, origin
from mpiprop.metrics.truth import Alignment, Likeness, likeness, pictures, psnr_and_ssim
from mpiprop.transport.world import World

CHUNK = 8  # renders at a time
TRUE_SIZE = 128  # pixels a side of the views that are compared with the truth's


def evaluate(args: Namespace) -> Summary:
    """The measures that the command's arguments ask for.

    Raises UserError for runs without prompt or pictures, for a judge that cannot be had, and for arguments that do not fit.
    """
    protocol = _protocol(args)
    made = {folder: some for folder in args.runs if (some := generated(folder))}
    if made and (protocol or args.truth):
        raise UserError(f"{next(iter(made))}: holds objects of `generate`, which are judged by their .{folders.VIEWS}; leave "
                        f"out {'--protocol' if protocol else '--truth'}")
    runs = [(folder, _prompted(folder, protocol)) for folder in args.runs if folder not in made]
    solids = [_true(folder, run) for folder, run in runs] if args.truth else []
    prompts = read_prompts(str(args.prompts)) if args.prompts else None
    device = World().device(args.device)
    judge = _judge(args.clip, protocol, device)
    if prompts is None:
        prompts = read_prompts("builtin") if judge.builtin else []
    reference = moments(args.reference, judge, _say) if args.reference else None

    subjects, objects, compared = [], [], []
    for folder, run in runs:
        subject, features, found = _views(folder, run, judge) if protocol is None else _rendered(
            folder, run, protocol, judge, args.seed if reference else None)
        subjects.append(subject)
        objects.append((run.prompt, features))
        if found is not None:
            compared.append(found)
    for subject, prompt in chain(*made.values()):
        subjects.append(subject)
        objects.append((prompt, features := judge.features(still_views(Path(subject.run)))))
        compared.append(Moments.of(features))
    prompts = list(dict.fromkeys([*prompts, *(prompt for prompt, _ in objects)]))
    truths = tuple(_against(folder, run, true, device) for (folder, run), true in zip(runs, solids))
    return Summary(
        protocol=args.protocol, settings=protocol, judge=judge.name, fingerprint=judge.fingerprint(), device=str(device),
        seed=args.seed, prompts_file=_text(args.prompts), reference=_text(args.reference),
        reference_pictures=reference.count if reference else 0,
        fid=frechet(reduce(add, [some for some in compared if some]), reference) if reference else None,
        result=measure(objects, prompts, judge.texts(prompts)), subjects=tuple(subjects), truths=truths)


def _judge(clip: str | None, protocol: Protocol | None, device: torch.device) -> Judge:
    """The judge that was asked for, or the protocol's."""
    if clip or protocol is None:
        return Judge(clip or "builtin", device)
    try:
        return Judge(protocol.clip, device)
    except UserError as error:
        raise UserError(f"{error}; or give --clip builtin, whose figures are not the paper's") from None


def _protocol(args: Namespace) -> Protocol | None:
    """The protocol with the views and the size that were asked for."""
    asked = {"views": args.views, "size": args.size}
    if args.protocol is None:
        for name, value in asked.items():
            if value is not None:
                raise UserError(f"--{name} belongs to a protocol: give --protocol {' or '.join(BY_NAME)} too")
        return None
    protocol = BY_NAME[args.protocol]
    if args.reference and not protocol.crops:
        raise UserError(f"--protocol {args.protocol} has no CLIP-FID: leave --reference out, or give --protocol dreampropeller")
    return replace(protocol, **{name: value for name, value in asked.items() if value is not None})


def _prompted(folder: Path, protocol: Protocol | None) -> Run:
    """The configuration of a run that can be judged."""
    run = folders.configured(folder)
    if len(run.prompts) > 1:
        raise UserError(f"{folder}: has {len(run.prompts)} prompts; what is judged is one object and its prompt")
    if not run.prompt:
        raise UserError(f"{folder}: was made from a picture without prompt=..., which is what its views are measured by")
    if protocol is None and not any((folder / "views").glob("*.png")):
        raise UserError(f"{folder}: has no views/*.png yet; finish the run first (--resume), or give --protocol, which renders "
                        "what there is")
    return run


def _views(folder: Path, run: Run, judge: Judge) -> tuple[Subject, Tensor, Moments]:
    """The pictures that a run leaves at its end: their features, and what CLIP-FID compares."""
    features = judge.features([read(path) for path in sorted((folder / "views").glob("*.png"))])
    return _subject(folder, run, run.stages[-1], run.stages[-1].steps), features, Moments.of(features)


def _rendered(folder: Path, run: Run, protocol: Protocol, judge: Judge, seed: int | None
              ) -> tuple[Subject, Tensor, Moments | None]:
    """A protocol's renders of a run's newest state: their features, and what CLIP-FID compares unless `seed` is None."""
    _say(f"{folder}: rendering {protocol.views} views")
    stage, found = outputs.newest(folder, judge.device)
    cameras, features, cuts = protocol.cameras(stage.views[0].turntable(1, (1, 1))), [], []
    for i in range(0, protocol.views, CHUNK):
        renders = list(pixels(outputs.frames(stage, found.window.x.theta, cameras[i:i + CHUNK])))
        features.append(protocol.features(renders, judge))
        if seed is not None:
            crops = [crop for view, render in enumerate(renders, i) for crop in protocol.cut(render, view, seed)]
            cuts.append(Moments.of(judge.features(crops)))
    return (_subject(folder, run, stage.config, found.window.x.tau), torch.cat(features), reduce(add, cuts) if cuts else None)


def _true(folder: Path, run: Run) -> Truth:
    """What the run's prompt asks for. Raises UserError where the corpus does not have it."""
    found = truth(run.prompt)
    if found is None or set(run.prompt.lower().split()) & set(SCENES):
        raise UserError(f'{folder}: --truth: the corpus has no true solid for "{run.prompt}", only for one object in one look, '
                        f'such as "a {LOOKS[0]} {SHAPES[0]}"; leave out --truth or this run')
    return found


def _against(folder: Path, run: Run, true: Truth, device: torch.device) -> Likeness:
    """The newest state of a run held against the true solid; an object without a surface has an IoU of 0."""
    _say(f"{folder}: held against the true solid")
    stage, found = outputs.newest(folder, device)
    theta = found.window.x.theta
    try:
        mesh = extract(stage.scene.load(theta, stage.T), say=lambda line: None,
                       **asdict(run.mesh) | {"faces": 0, "texture": 0, "height_m": 0.0})
        like = likeness(mesh.vertices, mesh.faces, true)
    except RunError:
        like = Likeness(0.0, None, Alignment(0.0, 1.0, (0.0, 0.0, 0.0)))
    n, size = outputs.VIEWS, (TRUE_SIZE, TRUE_SIZE)
    views = stage.views[0].turntable(n, size).farther(outputs.farther(stage, theta, n))
    psnr_db, ssim = psnr_and_ssim(outputs.frames(stage, theta, views, white=True), pictures(true, views, like.alignment))
    return replace(like, psnr_db=psnr_db, ssim=ssim)


def _subject(folder: Path, run: Run, stage: StageConfig, step: int) -> Subject:
    return Subject(str(folder), **origin(run, stage, step), finished=(folder / "done").exists())


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _say(line: str) -> None:
    """Print progress on the standard error; the result goes to the standard output."""
    print(line, file=sys.stderr, flush=True)
