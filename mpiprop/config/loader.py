"""The run's configuration: YAML with overrides as frozen records, complete and checked.

Defaults live in the records below and in the components' own signatures (components.py); a YAML holds what differs.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from mpiprop.config.components import PACKAGE, Node, needs, placed, takes
from mpiprop.config.conversion import convert, key, plain, spelt
from mpiprop.config.prompts import read_prompts
from mpiprop.core.errors import UserError, suggestion
from mpiprop.core.schedules import Schedule

PRESETS = {"paper": {"decay": 0.9, "predict": "copy", "reuse": False, "compare": "scene"}}  # of window, beside its `paper`
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"  # installed; checkout
VERBATIM = ("prompt", "image", "from")  # overrides taken as they are, never read as YAML


@dataclass(frozen=True)
class Published:
    threshold: float = key("first threshold e", lo=0)
    aggregate: Literal["median", "mean", "middle"] = key("how a window's errors renew e")


@dataclass(frozen=True)
class Window:
    preset: Literal["default", "paper"] = key(
        "what the keys not given here or in stages are set to: mpiprop's defaults, or Algorithm 2 of the DreamPropeller paper "
        "as printed (threshold and aggregate of `paper`, decay 0.9, predict: copy, reuse: false, compare: scene)", "default")
    size: int = key("steps evaluated side by side, p; 1 is the sequential method", 7, lo=1)
    threshold: Literal["auto"] | float = key(
        "first threshold e (mean square per trained number); 0 is the exact method, auto follows the optimiser's steps",
        "auto", lo=0)
    decay: float = key("gamma: share of e kept from one iteration to the next", 0.9, lo=0, hi=1)
    aggregate: Literal["median", "mean", "middle"] = key("how a window's errors renew e", "median")
    predict: Literal["copy", "momentum"] = key(
        "what new steps start from: the last iterate, or a line along its momentum", "momentum")
    reuse: bool = key("keep a gradient whose parameters moved by no more than e since it was evaluated; false: evaluate all "
                      "steps of the window anew in every iteration", True)
    compare: Literal["all", "scene"] = key(
        "numbers whose errors are held against e: all that train, or all but a LoRA's", "all")
    shards: int = key("parts of a step's batch, each for a rank of its own where there are enough (1 + size x shards); "
                      "changes results by rounding", 1, lo=1)
    relative: float = key("with threshold auto: e in units of one optimiser step's mean square", 10.0, lo=0)
    paper: None | Published = key("what preset: paper takes, as published for the system", None)


@dataclass(frozen=True)
class Checkpoint:
    every_s: float = key("time between checkpoints (s)", 60.0, lo=0)


@dataclass(frozen=True)
class Preview:
    every_s: float = key("time between previews (s), beside one at each stage's end; 0: none", 30.0, lo=0)
    size: int = key("height and width of a view (pixels)", 128, lo=1)
    views: int = key("views side by side", 4, lo=1)


@dataclass(frozen=True)
class Turntable:
    frames: int = key("views around the object, from the front", 60, lo=1)
    size: int = key("height and width of a view (pixels)", 256, lo=1)
    fps: int = key("frames a second", 20, lo=1)


@dataclass(frozen=True)
class MeshOut:
    resolution: int = key("cells along each side of the box", 128, lo=2)
    threshold: Literal["auto"] | float = key("density at the surface; auto: the mean where not empty", "auto", lo=0)
    parts: float = key("components with fewer faces than this share of the largest one's are dropped", 0.01, lo=0, hi=1)
    faces: int = key("number of faces to come down to; 0: keep all; a TexturedMesh keeps its own", 0, lo=0)
    texture: int = key("height and width of the texture (pixels); 0: colours at the vertices; a TexturedMesh keeps its own",
                       0, lo=0, hi=8192)
    height_m: float = key("height of the object (m), which then stands on the ground; 0: the scene's own units", 0.0, lo=0)


@dataclass(frozen=True)
class Picture:
    fill: float = key("longer side of the object over that of the picture, to which it is brought, in the middle; "
                      "0: it stays as and where it is", 0.8, lo=0, hi=1)
    size: int = key("height and width that the picture is brought to (pixels)", 512, lo=8, hi=4096)
    elevation_deg: float = key("elevation that it was taken from (degrees)", 0.0, lo=-89, hi=89)
    distance: float = key("distance of its camera from the origin (world units)", 3.8, lo=0.01)
    fovy_deg: float = key("vertical field of view of its camera (degrees)", 20.0, lo=1, hi=170)
    sha256: str | None = key("of its content and of the pictures of depth and normals beside it, as the program found it: "
                             "a run is of this picture, wherever it lies", None)


@dataclass(frozen=True)
class Term:
    name: str = key("name in the log; its random draws are keyed by it")
    views: Node = key("where to look from")
    guidance: Node = key("what is wanted there")
    weight: Schedule = key("factor of the guidance's loss", 1.0)
    penalties: dict[str, Schedule] = key("weight of each penalty, by name", dict)
    densify: bool = key("whether its views count where Gaussians are cloned and split by their gradients on the screen", True)


@dataclass(frozen=True)
class Stage:
    name: str = key("name in the log and in checkpoints")
    steps: int = key("optimiser steps, T", lo=1)
    shape: Node = key("what is optimised")
    material: Node = key("how it answers light")
    background: Node = key("what is behind it")
    render: Node = key("how a picture is made of it")
    optimiser: Node = key("one step, h-dagger")
    terms: tuple[Term, ...] = key("summands of the loss")
    window: Window = key("what differs from the run's window", Window)


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str = key("what the configuration is called (default: its file's name)", "")
    prompt: str = key("what to make", "")
    prompts_: tuple[str, ...] | None = key(
        "several things to make, in the place of prompt, where the shape is a generator: a list of texts, or the name of a "
        "file: .txt, one a line, or .json, a list or an object with the key train", None)
    image: str | None = key("picture to start from (file)", None)
    from_: str | None = key("run folder with whose newest state the first stage begins", None)
    seed: int = key("same seed, same bits", 0, lo=0)
    device: Literal["auto", "cpu", "cuda"] = key("where to compute; auto: a GPU if there is one", "auto")
    threads: int = key("CPU threads of each rank", 1, lo=1, hi=1024)
    faults: Literal["stop", "continue"] = key(
        "when a rank dies: save and stop, or go on with the others (under mpirun --with-ft ulfm)", "stop")
    patience_s: float = key("time without an answer after which a rank counts as hung (s), but at least 20 times the slowest "
                            "evaluation. Before a rank's first evaluation it is ten times as long", 60.0, lo=0)
    unknown_words: Literal["refuse", "warn"] = key("a prompt that names no object which a built-in model knows: refused, or "
                                                   "tried after a warning", "refuse")
    window: Window = key("the sliding window", Window)
    checkpoint: Checkpoint = key("window.h5", Checkpoint)
    preview: Preview = key("previews/", Preview)
    turntable: Turntable = key("turntable.gif", Turntable)
    mesh: MeshOut = key("mesh.glb", MeshOut)
    reference: Picture = key("what is known of the picture to start from", Picture)
    stages: tuple[Stage, ...] = key("stages, in order")

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts: those of `prompts`, or the only one."""
        return self.prompts_ or (self.prompt,)

    @property
    def subject(self) -> str:
        """What it makes in a few words: the picture's name, else the prompt, or how many there are."""
        if self.image is not None:
            return Path(self.image).stem.removesuffix("_rgba")
        return self.prompt if self.prompts_ is None else f"{len(self.prompts)} prompts"

    @property
    def reads_prompt(self) -> bool:
        """Whether a prior is told of the prompt, rather than of a picture."""
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


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {name.value!r} given twice", problem_mark=name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


for _dialect in (_Loader, _Dumper):  # YAML 1.1 takes 1e-3 for text
    _dialect.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
                                   list("-+.0123456789"))


def loads(text: str, where: str) -> Any:
    """The plain data that YAML `text` stands for."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: not YAML{f' (line {mark.line + 1})' if mark else ''}: {problem}") from None


def names() -> list[str]:
    """The configurations that come with the program."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def load(name: str, overrides: Sequence[str] = ()) -> Run:
    """The configuration `name` (of `names()`, or a file) with `key=value` overrides, checked and complete."""
    shipped = name in names()
    where, tree = f"configs/{name}.yaml" if shipped else name, read(name, overrides)
    if tree.get("prompts"):
        tree.pop("prompt", None)
        if isinstance(tree["prompts"], str):
            with placed(f"{where}: prompts"):
                tree["prompts"] = read_prompts(Path(tree["prompts"]), "train")
    return parse({"name": name if shipped else Path(name).stem} | tree, where)


def read(name: str, overrides: Sequence[str] = ()) -> dict:
    """The YAML of configuration `name` as plain data, with `a.b.0.c=value` overrides put in."""
    path = CONFIGS / f"{name}.yaml" if name in names() else Path(name)
    try:
        tree = loads(path.read_text(encoding="utf-8"), name)
    except OSError:
        raise UserError(f"{name}: no such configuration or file{suggestion(name, names())}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a text file") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name}: needs keys and values ({', '.join(spelt(f) for f in fields(Run))})")
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path:
            raise UserError(f"{override}: an override reads key=value")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(f"{path}: not UTF-8 text")
        tree = _put(tree, path.split("."), value if path in VERBATIM else loads(value, path), path)
    return tree


def _put(tree: Any, names: Sequence[str], value: Any, path: str) -> Any:
    """`tree` with `value` at `names`; the original stays as it is."""
    if not names:
        return value
    first, *rest = names
    if tree is None or isinstance(tree, dict):
        return {**(tree or {}), first: _put((tree or {}).get(first), rest, value, path)}
    if not isinstance(tree, list):
        raise UserError(f"{path}: there are no keys in {reprlib.repr(tree)}, so no {first!r}")
    if not first.isdecimal() or int(first) >= len(tree):
        raise UserError(f"{path}: no {first!r} in a list numbered 0 to {len(tree) - 1}")
    return [_put(item, rest, value, path) if i == int(first) else item for i, item in enumerate(tree)]


def parse(tree: Mapping[str, Any], where: str) -> Run:
    """The run that plain data describes; messages begin with `where`."""
    try:
        run = convert(Run, _inherit(tree), "")
        lists = {"stages": run.stages} | {f"stages.{i}.terms": stage.terms for i, stage in enumerate(run.stages)}
        for path, parts in lists.items():
            if not parts or len({part.name for part in parts}) < len(parts):
                raise UserError(f"{path}: needs at least one entry, each with a name of its own")
            if bad := [part.name for part in parts if not re.fullmatch(r"\w[^/\0]*", part.name)]:
                raise UserError(f"{path}: the name {bad[0]!r} cannot be part of a file's name; begin it with a letter, and "
                                "leave out '/'")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return run


def _inherit(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """`tree` with each stage's window completed by the run's, and all by their presets."""
    try:
        shared = tree.get("window") or {}
        windows = [_preset({**shared, **(stage.get("window") or {})}) for stage in tree["stages"]]
        tree = {**tree, "window": _preset(shared), "stages": [
            {**stage, "window": window} for stage, window in zip(tree["stages"], windows)]}
    except (AttributeError, KeyError, TypeError):
        return tree  # something is missing or of another kind: left for `convert` to say
    for i, window in enumerate(windows):
        if window.get("preset") == "paper" and "threshold" not in window:
            raise UserError(f"stages.{i}.window.preset: no published threshold is known for this stage: give one, such as "
                            "window.threshold=5.0e-6 (that of DreamFusion, Magic3D and TextMesh)")
    return tree


def _preset(window: Mapping[str, Any]) -> Mapping[str, Any]:
    """`window` completed by its preset; keys that it has stay as they are."""
    if window.get("preset") not in PRESETS:
        return window
    published = {name: value for name, value in (window.get("paper") or {}).items() if name in Published.__annotations__}
    return {**PRESETS[window["preset"]], **published, **window}


def resolved(run: Run) -> str:
    """The run as YAML with nothing left out: reading it gives the same run."""
    tree = plain(run)
    for stage in tree["stages"]:
        stage["window"] = {name: value for name, value in stage["window"].items() if value != tree["window"][name]}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def flow(value: Any) -> str:
    """A key's value as an override has it, in one line of YAML."""
    text = yaml.dump([plain(value)], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]
