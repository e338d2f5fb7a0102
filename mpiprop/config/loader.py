"""Reads the configuration of a run: YAML with overrides, completed by presets and defaults, checked."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from mpiprop.config.components import PACKAGE, placed
from mpiprop.config.conversion import convert, plain, spelt
from mpiprop.config.prompts import Corpus
from mpiprop.config.schema import Published, Run
from mpiprop.core.errors import UserError, suggestion

PRESETS = {"paper": {"decay": 0.9, "predict": "copy", "reuse": False, "compare": "scene"}}  # of window, beside its `paper`
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"  # installed; checkout
INSTEAD = {"prompt": "prompts", "prompts": "prompt"}  # an override of the one replaces the other of the file
VERBATIM = ("prompt", "image", "from")  # overrides taken as they are, never read as YAML


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
    """Parse YAML. Raises UserError, which begins with `where`."""
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
    if isinstance(tree.get("prompts"), str):
        tree["prompts"] = {"file": tree["prompts"]}
    return parse({"name": name if shipped else Path(name).stem} | tree, where)


def read(name: str, overrides: Sequence[str] = ()) -> dict:
    """The YAML of configuration `name` as plain data, with `a.b.0.c=value` overrides put in."""
    file = CONFIGS / f"{name}.yaml" if name in names() else Path(name)
    try:
        tree = loads(file.read_text(encoding="utf-8"), name)
    except OSError:
        raise UserError(f"{name}: no such configuration or file{suggestion(name, names())}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a text file") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name}: needs keys and values ({', '.join(spelt(f) for f in fields(Run))})")
    given = {override.partition("=")[0] for override in overrides}
    tree = {name: value for name, value in tree.items() if INSTEAD.get(name) not in given}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path:
            raise UserError(f"{override}: an override reads key=value")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(f"{path}: not UTF-8 text")
        tree = _put(tree, path.split("."), value if path in VERBATIM else loads(value, path), path)
    return tree


def _put(tree: Any, names: Sequence[str], value: Any, path: str) -> Any:
    """A copy of `tree` with `value` at the keys `names`."""
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
    """Convert plain data to a run. Raises UserError, which begins with `where`."""
    try:
        run = convert(Run, _inherit(tree), "")
        if run.prompts_ is not None and run.prompt:
            raise UserError("prompts: give prompt or prompts, not both")
        if isinstance(run.prompts_, Corpus):
            with placed("prompts"):
                run = replace(run, prompts_=run.prompts_.read())
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
    """`tree` with the window of each stage completed by that of the run, and both by their presets."""
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
    """The run as YAML with all keys: reading it gives the same run."""
    tree = plain(run)
    for stage in tree["stages"]:
        stage["window"] = {name: value for name, value in stage["window"].items() if value != tree["window"][name]}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def flow(value: Any) -> str:
    """A value in one line of YAML, as an override has it."""
    text = yaml.dump([plain(value)], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]
