"""The keys of a configuration: one record for each group of them, with their defaults, bounds and meanings.

The keys of components are in the components' own signatures (components.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpiprop.config.components import Node, needs, takes
from mpiprop.config.conversion import key
from mpiprop.config.prompts import Corpus
from mpiprop.core.schedules import Schedule


@dataclass(frozen=True)
class Published:
    """The threshold that a paper published for a system."""

    threshold: float = key("first threshold e", lo=0)
    aggregate: Literal["median", "mean", "middle"] = key("statistic of a window's errors that renews e")


@dataclass(frozen=True)
class WindowConfig:
    """The sliding window: its size, and the rule by which steps are accepted."""

    preset: Literal["default", "paper"] = key(
        "values of the keys that are given neither here nor in stages: mpiprop's defaults, or Algorithm 2 of the "
        "DreamPropeller paper as printed (threshold and aggregate of `paper`, decay 0.9, predict: copy, reuse: false, "
        "compare: scene)", "default")
    size: int = key("steps evaluated side by side, p; 1 is the sequential method", 7, lo=1)
    threshold: Literal["auto"] | float = key(
        "first threshold e (mean square per trained number); 0 is the exact method, auto follows the optimiser's steps",
        "auto", lo=0)
    decay: float = key("gamma: share of e kept from one iteration to the next", 0.9, lo=0, hi=1)
    aggregate: Literal["median", "mean", "middle"] = key("statistic of a window's errors that renews e", "median")
    predict: Literal["copy", "momentum"] = key(
        "what new steps start from: the last iterate, or a line along its momentum", "momentum")
    reuse: bool = key("keep a gradient whose parameters moved by no more than e since it was evaluated; false: evaluate all "
                      "steps of the window anew in every iteration", True)
    compare: Literal["all", "scene"] = key(
        "numbers whose errors are compared with e: all that are trained, or all but a LoRA's", "all")
    shards: int = key("parts of a step's batch, each on a rank of its own where there are enough (1 + size x shards); "
                      "changes results by rounding", 1, lo=1)
    relative: float = key("with threshold auto: e in units of one optimiser step's mean square", 10.0, lo=0)
    paper: None | Published = key("values that preset: paper uses, as published for the system", None)


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written."""

    every_s: float = key("time between checkpoints (s)", 60.0, lo=0)


@dataclass(frozen=True)
class Preview:
    """Pictures of the object while it is made."""

    every_s: float = key("time between previews (s), beside one at each stage's end; 0: none", 30.0, lo=0)
    size: int = key("height and width of a view (pixels)", 128, lo=1)
    views: int = key("views side by side", 4, lo=1)


@dataclass(frozen=True)
class Turntable:
    """The film of the object at the end."""

    frames: int = key("views around the object, from the front", 60, lo=1)
    size: int = key("height and width of a view (pixels)", 256, lo=1)
    fps: int = key("frames a second", 20, lo=1)


@dataclass(frozen=True)
class MeshOut:
    """The mesh at the end."""

    resolution: int = key("cells along each side of the box", 128, lo=2)
    threshold: Literal["auto"] | float = key("density at the surface; auto: the mean where not empty", "auto", lo=0)
    parts: float = key("components with fewer faces than this share of the largest one's are dropped", 0.01, lo=0, hi=1)
    faces: int = key("number of faces to simplify to; 0: keep all; a TexturedMesh keeps its own", 0, lo=0)
    texture: int = key("height and width of the texture (pixels); 0: colours at the vertices; a TexturedMesh keeps its own",
                       0, lo=0, hi=8192)
    height_m: float = key("height of the object (m), which then stands on the ground; 0: the scene's own units", 0.0, lo=0)


@dataclass(frozen=True)
class Picture:
    """The picture to start from, and the camera that took it."""

    fill: float = key("longer side of the object as a share of the picture's, to which it is scaled, in the middle; "
                      "0: it stays as it is", 0.8, lo=0, hi=1)
    size: int = key("height and width that the picture is scaled to (pixels)", 512, lo=8, hi=4096)
    elevation_deg: float = key("elevation that it was taken from (degrees)", 0.0, lo=-89, hi=89)
    distance: float = key("distance of its camera from the origin (world units)", 3.8, lo=0.01)
    fovy_deg: float = key("vertical field of view of its camera (degrees)", 20.0, lo=1, hi=170)
    sha256: str | None = key("checksum of the picture and of those of depth and normals beside it, filled in by the "
                             "program: it identifies the picture wherever the file is", None)


@dataclass(frozen=True)
class TermConfig:
    """A term of the loss: views, and an objective for them."""

    name: str = key("name in the log; its random draws are keyed by it")
    views: Node = key("the cameras")
    guidance: Node = key("the objective of these views")
    weight: Schedule = key("factor of the guidance's loss", 1.0)
    penalties: dict[str, Schedule] = key("weight of each penalty, by name", dict)
    densify: bool = key("whether its views count where Gaussians are cloned and split by their gradients on the screen", True)


@dataclass(frozen=True)
class StageConfig:
    """A stage: what is optimised, how, and for how many steps."""

    name: str = key("name in the log and in checkpoints")
    steps: int = key("optimiser steps, T", lo=1)
    shape: Node = key("what is optimised")
    material: Node = key("its colours and shading")
    background: Node = key("the colour where no part of it is")
    render: Node = key("the renderer")
    optimiser: Node = key("the optimiser, h-dagger")
    terms: tuple[TermConfig, ...] = key("terms of the loss")
    window: WindowConfig = key("keys that differ from the run's window", WindowConfig)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole configuration."""

    name: str = key("what the configuration is called (default: its file's name)", "")
    prompt: str = key("what to make", "")
    prompts_: tuple[str, ...] | None | Corpus = key(
        "what to make, in place of prompt, where the shape is a generator: a list of texts, or a file or a corpus by its name",
        None)
    image: str | None = key("picture to start from (file)", None)
    from_: str | None = key(
        "what the first stage begins with: the newest state of the run in this folder, or, where a generator was trained "
        "there or exported to it, what that makes of the prompt, or, to train it further, itself; builtin: the generator that "
        "comes with the program", None)
    seed: int = key("same seed, same bits", 0, lo=0)
    device: Literal["auto", "cpu", "cuda"] = key("where to compute; auto: a GPU if there is one", "auto")
    threads: int = key("CPU threads of each rank", 1, lo=1, hi=1024)
    faults: Literal["stop", "continue"] = key(
        "when a rank dies: save and stop, or go on with the others (under mpirun --with-ft ulfm)", "stop")
    patience_s: float = key("time without an answer after which a rank counts as hung (s), but at least 20 times the slowest "
                            "evaluation. Before a rank's first evaluation it is ten times as long", 60.0, lo=0)
    unknown_words: Literal["refuse", "warn"] = key("a prompt that names no object which a built-in model knows: refused, or "
                                                   "tried after a warning", "refuse")
    window: WindowConfig = key("the sliding window", WindowConfig)
    checkpoint: CheckpointConfig = key("window.h5", CheckpointConfig)
    preview: Preview = key("previews/", Preview)
    turntable: Turntable = key("turntable.gif", Turntable)
    mesh: MeshOut = key("mesh.glb", MeshOut)
    reference: Picture = key("settings for the picture to start from", Picture)
    stages: tuple[StageConfig, ...] = key("stages, in order")

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts: those of `prompts`, or the only one."""
        return self.prompts_.texts if isinstance(self.prompts_, Corpus) else self.prompts_ or (self.prompt,)

    @property
    def subject(self) -> str:
        """What it makes in a few words: the picture's name, else the prompt, or how many there are."""
        if self.image is not None:
            return Path(self.image).stem.removesuffix("_rgba")
        return self.prompt if self.prompts_ is None else f"{len(self.prompts)} prompts"

    @property
    def reads_prompt(self) -> bool:
        """Whether a prior reads the prompt, rather than of a picture."""
        guidances = [term.guidance for stage in self.stages for term in stage.terms]
        return any(takes(node, "prompts") and not needs(node.part("prompts"), "reference") for node in guidances)

    def index(self, name: str) -> int:
        """The number of the stage of this name."""
        return [stage.name for stage in self.stages].index(name)

    @property
    def nodes(self) -> list[Node]:
        """The outermost components of all stages."""
        return [node for stage in self.stages for node in (
            stage.shape, stage.material, stage.background, stage.render, stage.optimiser,
            *(node for term in stage.terms for node in (term.views, term.guidance)))]
