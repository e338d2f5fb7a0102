"""Builds each stage of a run without reading weights, checks that its parts fit together, and measures its size.

One rank that evaluates does this for all, because the models' files are on its host.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from mpiprop.run.checkpoint import Checkpoint
from mpiprop.conditioning.base import texts_for
from mpiprop.config.components import Node, placed, takes, texts
from mpiprop.config.loader import loads, parse
from mpiprop.config.schema import Run, StageConfig, TermConfig
from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule
from mpiprop.core.streams import Streams
from mpiprop.appearance.backgrounds import TextBackground
from mpiprop.appearance.materials import NoMaterial
from mpiprop.guidance.regularizers import lacking
from mpiprop.planning.laws import Work
from mpiprop.priors.base import Prior
from mpiprop.priors.diffusion import Latent
from mpiprop.priors.vocabulary import unknown_words
from mpiprop.run import fitting
from mpiprop.run.generator import Maker
from mpiprop.run.stage import Stage
from mpiprop.shapes.generators.base import Generator
from mpiprop.render.mesh import Mesh
from mpiprop.render.volume import Volume
from mpiprop.shapes.clouds.base import Cloud
from mpiprop.shapes.fields.base import DistanceField, Field
from mpiprop.shapes.surfaces.base import TexturedSurface
from mpiprop.objective.gradient import Term as Built
from mpiprop.views.cameras import Views
from mpiprop.views.reference import Reference
from mpiprop.run.preflight import memory

OTHERWISE = (". For anything else take a system with a real model, such as dreamfusion-sd with Stable Diffusion, or try it "
             "all the same with unknown_words=warn")
BACKENDS = {"nerfacc": "nerfacc", "gsplat": "gsplat", "nvdiffrast": "nvdiffrast", "tcnn": "tinycudann"}
BUILDING = 3  # a stage may take this part of free memory while it is built: a run holds several vectors as long as theta
# Bytes at the peak of an evaluation, measured on the demos: of a sample along a ray (and of each channel of its encoding),
# of a pixel of the other renderers; tensors that are kept of a block of a VAE, and of a UNet that learns
SAMPLE, CHANNEL, SURFACE_PIXEL, SPLAT_PIXEL, VAE_TENSORS, UNET_TENSORS = 20, 2.75, 600, 2000, 8, 80


@dataclass(frozen=True)
class Survey:
    """The size of one stage, and notes about it."""

    work: Work
    most: Work  # the same of a cloud at its largest
    priors: tuple[str, ...]  # names of the models, each once
    weights: int  # bytes of the priors' weights on a rank that evaluates
    evaluation: float  # bytes that an evaluation takes on top, by estimate
    grid: int  # cells a side of the grid in which the stage that follows finds this one's surface
    marched: bool  # its surface is found in a grid
    cloud: bool  # its points are written as cloud.ply, too
    notes: tuple[str, ...]  # for the user, a line each


class Untold:
    """Stands in for encoded prompts, which a stage that is only checked does not need."""

    def to(self, device: torch.device | str) -> "Untold":
        return self


def survey(run: Run, begin: int, device: torch.device, reference: Reference | None, under_way: bool,
           other: Checkpoint | Maker | None) -> list[Survey]:
    """Survey all stages from number `begin` on.

    under_way: that stage continues from its own checkpoint
    other: the checkpoint of another run, or the generator, with which it begins, if any
    Raises UserError for the first thing that cannot work. Models' files come last: those on a hub are fetched.
    """
    _backends(run.stages[begin:])
    stages, before = [], None
    room = memory.host().free / BUILDING if device.type == "cpu" else None
    if isinstance(other, Checkpoint):
        then = parse(loads(other.config, "checkpoint"), f"from={run.from_}")
        before = Stage(then, then.index(other.stage), device)
    for index in range(begin, len(run.stages)):
        with memory.bounded(f"stages.{index}", room):
            stage = Stage(run, index, device, reference)
            if isinstance(other, Maker) and index == begin:
                _can_begin_with(stage, other, f"stages.{index}.shape")
            elif not (under_way and index == begin):
                _can_begin(stage, before, f"stages.{index}.shape")
            stages.append(_survey(stage, f"stages.{index}"))
            before = stage
    return [_with_models(found, models) for found, models in stages]


def _survey(stage: Stage, path: str) -> tuple[Survey, list["Model"]]:
    """The survey of a stage without its models' files, and these models."""
    has, shape, layout = _drawn(stage, path), stage.scene.shape, stage.scene.layout
    if len(stage.run.prompts) > 1 and not isinstance(shape, Generator):
        raise UserError(f"prompts: a {type(shape).__name__} ({path}.shape) makes one object; give prompt=TEXT")
    slots = len(stage.rollout().optimiser.slots)
    unit = stage.unit([Untold() if takes(term.guidance, "prompts") else None for term in stage.config.terms])
    asked = [_model(stage, term) for term in stage.config.terms]
    batches, evaluation = [], 0.0
    for i, (term, built, model) in enumerate(zip(stage.config.terms, unit.terms, asked)):
        _images(term, built, has, f"{path}.terms.{i}")
        smallest, costs = _batches(stage, term, built, model.prior if model else None, f"{path}.terms.{i}.views")
        batches.append(smallest)
        evaluation = max(evaluation, costs)
    full = layout.of_points(max(layout.N, shape.most_points) if isinstance(shape, Cloud) else 0)
    work, most = (Work(stage.name, stage.T, tuple(batches), some.D, some.L, slots) for some in (layout, full))
    models = [model for model in asked if model]
    if stage.lora is not None and stage.lora.prior not in [model.prior for model in models]:
        (node,) = [term.guidance.part("lora").part("prior") for term in stage.config.terms if takes(term.guidance, "lora")]
        models.append(Model(node, stage.lora.prior, ()))
    models += [Model(node, network, ()) for term in stage.config.terms for node, network in stage.networks(term.guidance)]
    notes = tuple(dict.fromkeys(note for model in models for note in unknown_words(
        model.prior.vocabulary, model.name, stage.run.prompts, model.strings, stage.run.unknown_words == "warn",
        OTHERWISE)))
    return Survey(work, most, (), 0, evaluation, shape.handover_mesh["resolution"] if isinstance(shape, TexturedSurface) else 0,
                  isinstance(shape, (Field, Cloud)), isinstance(shape, Cloud), notes), models


@dataclass(frozen=True)
class Model:
    """A prior, and the texts that it will encode."""

    node: Node
    prior: Prior
    strings: tuple[str, ...]  # of the prompt
    texts: tuple[str, ...] = ()  # of the guidance itself

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.node.title


def _model(stage: Stage, term: TermConfig) -> Model | None:
    """The model of a term; None where it has none."""
    if not takes(term.guidance, "prompts"):
        return None
    prior, prompts = stage.prior(term.guidance), stage.prompts(term.guidance)
    with placed(term.guidance.part("prompts").path):
        prompts.check(prior)
    strings = [string for prompt in stage.run.prompts for string in prompts.strings(prompt)]
    own = [text for prompt in stage.run.prompts for text in texts_for(prompt, texts(term.guidance))]
    return Model(term.guidance.part("prior"), prior, tuple(dict.fromkeys(strings)), tuple(dict.fromkeys(own)))


def _with_models(found: Survey, models: list[Model]) -> Survey:
    """The survey completed from the models' files. Raises UserError where one is missing or does not fit."""
    notes, sizes = list(found.notes), {}
    for model in models:
        with placed(model.node.path):
            notes += [f"warning: {line}" for line in model.prior.verify((*model.strings, *model.texts))]
            sizes[model.prior] = model.prior.weight_bytes()
    return replace(found, priors=tuple(dict.fromkeys(model.name for model in models)), weights=sum(sizes.values()),
                   notes=tuple(dict.fromkeys(notes)))


def _can_begin(stage: Stage, before: Stage | None, path: str) -> None:
    """Raises UserError where the stage's shape cannot begin with that of the stage before it."""
    if before is not None:
        with placed(path):
            stage.scene.shape.check_start(before.scene.shape)
    elif isinstance(stage.scene.shape, TexturedSurface):
        raise UserError(f"{path}: begins with the shape of a stage before it: put one before it, or give from=RUN")


def _can_begin_with(stage: Stage, maker: Maker, path: str) -> None:
    """Raises UserError where the stage's shape cannot begin with a generator, or with what that makes of the prompt."""
    if isinstance(stage.scene.shape, Generator):
        if not stage.scene.shape.fits(maker.scene.shape):
            raise UserError(f"{path}: its numbers are laid out otherwise than those of the generator from={stage.run.from_}; "
                            "give it the keys of that one's config.yaml")
        return
    maker.check([stage.run.prompt])
    with placed(path):
        fitting.check(stage.scene.shape, maker.object(maker.text(stage.run.prompt)).shape)


def _drawn(stage: Stage, path: str) -> set[str]:
    """What the stage's images will have (keys of guidance.regularizers.LACKING).

    Raises UserError where the renderer does not draw the shape, or the material needs normals that the shape lacks.
    """
    scene, (renderer, shape) = stage.scene, (stage.scene.renderer, stage.scene.shape)
    with placed(f"{path}.render"):
        renderer.check(shape)
    has = set(renderer.makes) | ({"normals"} if shape.has_normals else set())
    kind = shape.makes if isinstance(shape, Generator) else type(shape)
    has |= {"slope"} if shape.has_normals and issubclass(kind, DistanceField) else set()
    if isinstance(scene.background, TextBackground) and not isinstance(shape, Generator):
        raise UserError(f"{path}.background: {type(scene.background).__name__} reads the prompt for a generator, and a "
                        f"{type(shape).__name__} is none; use NeuralEnvironment or Solid")
    if isinstance(shape, Cloud) and type(scene.material) is not NoMaterial:
        raise UserError(f"{path}.material: Gaussians have colours of their own; use NoMaterial")
    if "normals" not in has and scene.material.wants_normals(stage.T, None):
        raise UserError(f"{path}.material: {type(scene.material).__name__} shades by normals, which the shape does not have; "
                        "set shape.normal, or use NoMaterial")
    return has


def _images(term: TermConfig, built: Built, has: set[str], path: str) -> None:
    """Raises UserError for a penalty or a guidance that needs what the images do not have."""
    for name, weight in term.penalties.items():
        if _values(weight) != {0.0} and (why := lacking(name, has)):
            raise UserError(f"{path}.{why}")
    if getattr(built.guidance, "reads_normals", False) and "normals" not in has:
        raise UserError(f"{term.guidance.path}.normal: the shape has no normals; set shape.normal, or the weight to 0")


def _batches(stage: Stage, term: TermConfig, built: Built, prior: Prior | None, path: str) -> tuple[int, float]:
    """The views in a term's smallest batch, and bytes at the peak of its most expensive evaluation. Raises UserError for
    batches that cannot be drawn or divided, or that the guidance does not take."""
    sizes, costs, group, shards = [], [], 1 if prior is None else prior.group, stage.config.window.shards
    for tau in _knots(term, stage.T):
        with placed(path):
            views = built.views(tau, Streams(stage.run.seed, tau).of(stage.name).of(term.name))
        B = len(views)
        parts = [B * (part + 1) // shards - B * part // shards for part in range(shards)]
        if any(part % group for part in parts):
            raise UserError(f"{path}.batch: {group} adjacent views are denoised together, and step {tau} has {B} in {shards} "
                            f"part{'s' if shards > 1 else ''}; give a multiple of {group * shards}")
        if group > 1 and term.views.keys.get("group", group) != group:
            raise UserError(f"{path}.group: the prior denoises {group} adjacent views together; set group: {group}")
        with placed(term.guidance.path):
            getattr(built.guidance, "check", lambda *_: None)(views, tau)
        sizes.append(B)
        costs.append(_evaluation(stage, max(parts), views, prior, hasattr(built.guidance, "lora")))
    return min(sizes), max(costs)


def _evaluation(stage: Stage, part: int, views: Views, prior: Prior | None, learns: bool) -> float:
    """Bytes at the peak of an evaluation of `part` views (an estimate): of rendering them and of the prior."""
    scene, (H, W) = stage.scene, views.size
    pixels, drawn = part * H * W, 0.0
    if isinstance(scene.renderer, Volume):
        channels = getattr(getattr(scene.shape, "encoding", None), "channels", 32)
        drawn = pixels * scene.renderer.samples * (SAMPLE + CHANNEL * channels)
    elif isinstance(scene.renderer, Mesh):
        drawn = pixels * scene.renderer.supersampling ** 2 * SURFACE_PIXEL
    else:
        drawn = pixels * SPLAT_PIXEL
    if not isinstance(prior, Latent):
        return drawn
    seen, widths = part * prior.resolution ** 2, prior.config["block_out_channels"]
    kept = seen * VAE_TENSORS * prior.layers * _narrowing(prior.widths)
    if learns:
        kept += seen / 4 ** (len(prior.widths) - 1) * UNET_TENSORS * _narrowing(widths)
    return drawn + prior.dtype.itemsize * kept


def _narrowing(widths: Sequence[int]) -> float:
    """Numbers in one tensor of each level of a network, per pixel of the first level; each level halves both sides."""
    return sum(width / 4 ** level for level, width in enumerate(widths))


def _knots(term: TermConfig, T: int) -> list[int]:
    """The first step, the last, and those at which a schedule of the term has a knot."""
    steps = {step for node in (term.views, term.guidance) for value in node.keys.values() for step in _steps(value)}
    return sorted({0, T - 1} | {int(step) for step in steps if 0 <= step < T})


def _steps(value: object) -> Iterator[float]:
    """The steps of a schedule [[step, value], ...]; none of anything else."""
    if isinstance(value, tuple):
        yield from (knot[0] for knot in value if isinstance(knot, tuple) and len(knot) == 2)


def _values(schedule: Schedule) -> set[float]:
    """All values of a schedule's knots."""
    return {float(schedule)} if isinstance(schedule, (int, float)) else {float(value) for _, value in schedule}


def _backends(stages: Sequence[StageConfig]) -> None:
    """Raises UserError for a component that names a package which is not here."""
    for node in (node for stage in stages for node in (stage.shape, stage.render)):
        if (package := BACKENDS.get(str(node.keys.get("backend")))) and not find_spec(package):
            raise UserError(f"{node.path}.backend: {node.keys['backend']} needs the package {package}, which is not installed "
                            "here; install it, or set backend: torch")
