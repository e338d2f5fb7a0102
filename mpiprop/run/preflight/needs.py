"""Estimates what a run needs: memory of each rank in each stage, and space on the disk.

Vectors, weights, grids and films are counted. The rest is estimated with constants that were measured on the demos
(tools/README.md, "What a run needs"); messages call such figures estimates.
"""

import torch

from mpiprop.config.schema import Run, WindowConfig
from mpiprop.planning.laws import FLOAT, Work, root_bytes, worker_bytes
from mpiprop.run.preflight.memory import Need
from mpiprop.run.preflight.stages import Survey

GRID = 40  # bytes of memory of a point of the grid in which a surface is found
TEXEL = 60  # ... of a texel while a texture is made
FILM = 24  # ... of a film's pixel, at least; twice that at the peak
RESULT_PACKAGES, MODEL_PACKAGES = 130e6, 200e6  # ... of the packages that make results, and of those that read models
PICTURE_FILES, TEXTURE_FILES, FACE_FILES = 2.5, 7, 100  # bytes on the disk of a film's pixel, of a texel, of a face
VIEWS = 12  # pictures in views/

THETA = "window.size, or what the shape is made of (its tables, its resolution)"
MODELS = "the number of ranks here, or model and dtype of the prior"
PACKAGES = "the number of ranks here"


def of_rank(run: Run, stage: Survey, window: WindowConfig, rank: int, ranks: int, device: torch.device, grid: int,
            last: bool) -> dict[str, Need]:
    """Memory that a rank needs in a stage, by kind ("host", "gpu").

    grid: cells along a side of the grid in which rank 0 finds the surface at the end of the stage; 0: none
    """
    vectors, host = Need(), Need()
    if rank == 0:
        sure = root_bytes(stage.work, window.size)
        vectors.known = {THETA: sure, "mesh.resolution": GRID * (grid // 2 + 1) ** 3}  # the coarse pass, of the whole box
        vectors.guessed = {"densify_most, or window.size": root_bytes(stage.most, window.size) - sure,
                           "mesh.resolution": GRID / 2 * grid ** 3}
        host.guessed = {PACKAGES: RESULT_PACKAGES}
    if rank > 0 or ranks == 1:
        shards = window.shards if ranks > 1 else 1
        vectors.known |= {THETA: vectors.known.get(THETA, 0) + worker_bytes(stage.work, shards), MODELS: stage.weights}
        vectors.guessed["views.batch, views.size or render.samples"] = stage.evaluation
    if rank > 1 and stage.weights:
        host.guessed = {PACKAGES: MODEL_PACKAGES}
    if rank == 0 and last:
        film = FILM * max(run.turntable.frames, VIEWS) * run.turntable.size ** 2
        host.known |= {"turntable.frames or turntable.size": film,
                       "preview.views or preview.size": FILM * run.preview.views * run.preview.size ** 2}
        host.guessed |= {"turntable.frames or turntable.size": film, "mesh.texture": TEXEL * run.mesh.texture ** 2}
    if device.type == "cuda":
        return {"host": host, "gpu": vectors}
    return {"host": Need(host.known | vectors.known, host.guessed | vectors.guessed)}


def checkpoint(work: Work, window: WindowConfig) -> float:
    """Bytes of a checkpoint: a state, and the guesses of a window."""
    return FLOAT * ((1 + min(window.size, work.T)) * work.L + work.slots * work.D)


def results(run: Run, last: Survey) -> float:
    """Bytes of a finished run's files besides the checkpoint (an estimate)."""
    films = PICTURE_FILES * (run.turntable.frames + VIEWS) * run.turntable.size ** 2
    faces = FACE_FILES * (run.mesh.faces or 2 * run.mesh.resolution ** 2)
    return films + faces + TEXTURE_FILES * run.mesh.texture ** 2 + (FLOAT * last.work.L if last.cloud else 0)
