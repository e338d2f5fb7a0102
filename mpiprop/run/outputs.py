"""The pictures and files of a run, from one theta: previews while it runs, turntable, views, mesh and report at its end."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from mpiprop.run import checkpoint, folders
from mpiprop import report
from mpiprop.config.schema import Run
from mpiprop.core.errors import RunError, UserError
from mpiprop.run.log import Log
from mpiprop.core.theta import Theta
from mpiprop.guidance.reference import before, psnr
from mpiprop.run.stage import Stage
from mpiprop.report.judged import Judged, judge
from mpiprop.report.made import Made
from mpiprop.shapes.clouds.base import Cloud
from mpiprop.shapes.clouds.ply import number
from mpiprop.shapes.generators.base import Generator
from mpiprop.views.cameras import Views, orbit
from mpiprop.views.reference import Reference

VIEWS = 12  # what views/ holds and `evaluate` looks at
ROWS = 4  # of a preview at most
PROBE = 40  # pixels a side of the views that tell whether an object fits
FARTHER = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)  # times the configured distance


def newest(folder: Path, device: torch.device | str = "cpu", overrides: Sequence[str] = ()
           ) -> tuple[Stage, checkpoint.Checkpoint]:
    """The stage that the run in `folder` is in, and its newest checkpoint. Raises UserError where there is none."""
    run = folders.configured(folder, overrides)
    if not (folder / "window.h5").is_file():
        raise UserError(f"{folder}: has no checkpoint (window.h5) yet")
    torch.set_num_threads(max(run.threads, torch.get_num_threads()))
    found = checkpoint.load(folder / "window.h5", device)
    stage = Stage(run, run.index(found.stage), torch.device(device))
    if isinstance(stage.scene.shape, Generator):
        stage.read(stage.embeddings({term: store for term, store in stage.stores(folder).items() if not store.missing}))
    return stage, found


def frames(stage: Stage, theta: Theta, views: Views, stay: Callable[[], None] = lambda: None, white: bool = False) -> Tensor:
    """Evaluation renders [B, H, W, 3] on the CPU of theta_T's scene, view by view; `stay` may raise in between.

    white: whether white takes the place of the scene's background
    """
    scene, pictures = stage.scene.load(theta, stage.T), []
    for i in range(len(views)):
        stay()
        with torch.no_grad():
            image = scene.render(views[i:i + 1], stage.T, needs=())
        rgb = image.rgb
        if white:
            assert image.behind is not None  # evaluation renders have it
            rgb = rgb + (1 - image.opacity) * (1 - image.behind)
        pictures.append(rgb[0].clamp(0, 1).cpu())
    return torch.stack(pictures)


def farther(stage: Stage, theta: Theta, n: int) -> float:
    """How many times as far away as configured n evaluation views need to be to show all of theta_T's object: 1 where it
    fits or where the cameras stand inside the shape's box, as in a room; at most the last of FARTHER."""
    scene, views = stage.scene.load(theta, stage.T), stage.views[0].turntable(n, (PROBE, PROBE))
    if bool((views.c2w[:, :3, 3].abs() < scene.shape.radius).all()):
        return 1.0

    def cut(view: Views) -> bool:
        opacity = scene.render(view, stage.T, needs=()).opacity[0, :, :, 0]
        return bool(max(opacity[[0, -1]].max(), opacity[:, [0, -1]].max()) > 0.5)
    with torch.no_grad():
        return next((factor for factor in FARTHER[:-1]
                     if not any(cut(views[i:i + 1].farther(factor)) for i in range(n))), FARTHER[-1])


def preview(run: Run, stage: Stage, theta: Theta, tau: int, folder: Path) -> Tensor:
    """previews/STAGE-TAU.png: a few views side by side, [H, views * W, 3]; of several prompts a row for each of the first."""
    from mpiprop.io.pictures import png

    n, size = run.preview.views, run.preview.size
    views = stage.views[0].turntable(n, (size, size)).farther(farther(stage, theta, n))
    rows = [views.under([prompt] * n) for prompt in range(min(len(run.prompts), ROWS))]
    strip = torch.cat([torch.cat(list(frames(stage, theta, row)), 1) for row in rows])
    (folder / "previews").mkdir(exist_ok=True)
    png(strip, folder / "previews" / f"{stage.name}-{tau:06d}.png")
    return strip


def likeness(stage: Stage, theta: Theta, reference: Reference, size: int) -> tuple[Tensor, float]:
    """The input image beside a render from the same camera [H, 2 W, 3], and the PSNR between them (dB)."""
    side = min(size, len(reference.rgba))
    picture = reference.resized(side).to(stage.device)
    view = orbit(reference.azimuth, reference.elevation, reference.distance, reference.fovy, (side, side))
    with torch.no_grad():
        image = stage.scene.load(theta, stage.T).render(replace(view, unlit=True), stage.T, needs=())
        pair = torch.cat([before(image, picture, picture.rgba[..., 3:])[0], image.rgb[0].clamp(0, 1)], 1)
    return pair.cpu(), psnr(image, picture)


def cloud(stage: Stage, theta: Theta, folder: Path) -> None:
    """Writes cloud.ply if theta_T is a cloud of Gaussians."""
    from mpiprop.io.files import write_cloud

    if isinstance(shape := stage.scene.load(theta, stage.T).shape, Cloud):
        write_cloud(shape.rows(), folder / "cloud.ply")


def write(run: Run, stage: Stage, theta: Theta, folder: Path, log: Log, stay: Callable[[], None]) -> None:
    """All results of a finished run, what they are in a few lines, and `done` last of all."""
    from mpiprop.io.files import write as write_mesh
    from mpiprop.io.mesh import extract
    from mpiprop.io.pictures import film, has_ffmpeg, png

    size, views, psnr_db, mesh = run.turntable.size, stage.views[0], None, None
    if len(run.prompts) > 1:
        log.say(f"results are of the first of {len(run.prompts)} prompts, {run.prompts[0]!r}")
    if (factor := farther(stage, theta, VIEWS)) > 1:
        log.say(f"views and turntable are seen from {factor:g} times eval_distance: the object would not fit otherwise")
    (folder / "views").mkdir(exist_ok=True)
    for i, picture in enumerate(frames(stage, theta, views.turntable(VIEWS, (size, size)).farther(factor), stay)):
        png(picture, folder / "views" / f"{i:03d}.png")
    if stage.reference is not None:
        pair, psnr_db = likeness(stage, theta, stage.reference, 2 * size)
        png(pair, folder / "likeness.png")
    turn = frames(stage, theta, views.turntable(run.turntable.frames, (size, size)).farther(factor), stay)
    film(turn, folder / "turntable.gif", run.turntable.fps)
    if has_ffmpeg():
        film(turn, folder / "turntable.mp4", run.turntable.fps)
    stay()
    cloud(stage, theta, folder)
    try:
        mesh = extract(stage.scene.load(theta, stage.T), say=log.note, **asdict(run.mesh))
    except RunError as error:  # the run is done all the same
        log.say(f"{error}; no mesh.glb", error=True)
    else:
        write_mesh(mesh, folder / "mesh.glb")
    points = folder / "cloud.ply"  # of this stage or an earlier one
    made = Made(len(mesh.faces) if mesh else None, mesh.open_edges if mesh else None,
                number(points) if points.exists() else None, psnr_db, _judged(run, folder, log))
    made.write(folder)
    report.write([report.RunSummary.read(folder)], folder / "report.html")
    for line in made.lines():
        log.say(line)
    (folder / "done").write_text("")
    log.say(f"done: look at {folder / 'turntable.gif'} or open {folder / 'report.html'}")


def _judged(run: Run, folder: Path, log: Log) -> Judged | None:
    """Returns the verdict of the built-in judge; None where it fails, since a run is complete without it."""
    try:
        return judge(run.prompts[0], sorted((folder / "views").glob("*.png")))
    except Exception as error:
        log.note(f"the built-in judge could not look: {type(error).__name__}: {error}")
        return None
