"""The help of `mpiprop run`: a short page, the keys of one configuration with its values, and all keys with their defaults.

Nothing here loads torch, so that help comes at once.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, get_args, get_type_hints

from mpiprop.config import loader
from mpiprop.config.components import MODULES, OWN, Component, Node, find, plugins
from mpiprop.config.schema import Run
from mpiprop.config.conversion import describe_kind, spelt
from mpiprop.core.errors import UserError, suggestion

USAGE = """usage: mpiprop run CONFIG [key=value ...] [--out DIR] [--resume] [--check]

Makes a 3D object from a prompt or a picture. CONFIG is a configuration below, or a YAML file.

  mpiprop run demo prompt="a green mushroom"                      in minutes, on the built-in model
  mpirun -n 8 python -m mpiprop run dreamfusion-sd prompt="a DSLR photo of a hamburger" --out runs/burger --resume
  mpiprop run zero123 image=photo.png reference.elevation_deg=10 --check

  --out DIR    run folder (default: runs/CONFIG-PROMPT-SEED)
  --resume     continue the run in DIR, or else the newest unfinished run of this configuration, prompt and seed; start
               afresh where there is none
  --check      check all that the run needs, print its plan, and stop before the first step; writes nothing
"""
MORE = """more help:
  mpiprop run CONFIG --help       the keys of a configuration, with its values
  mpiprop run --help TOPIC        every key of a topic with its default. TOPIC is a component, such as HashGrid or SDS,
                                  or one of
{topics}
  mpiprop run --help all          all of them"""
COMMON = ("prompt", "image", "seed", "device", "window.size", "window.threshold", "stages.0.steps", "mesh.texture")
WIDTH = 118
INDENT = 50  # where the meanings of keys begin


def answer(words: Sequence[str]) -> str:
    """The help for the words of a `run` command line: none, a configuration with overrides, or a topic."""
    topics = [word for word in words if "=" not in word and not word.startswith("-")]
    if not topics:
        return short()
    if topics[0] in loader.names() or Path(topics[0]).is_file():
        return of(topics[0], [word for word in words if "=" in word and not word.startswith("-")])
    return complete() if topics[0] == "all" else topic(topics[0])


def short() -> str:
    """The short page: usage, examples, the keys used most, the configurations, more help."""
    about = {key: doc for key, _, _, doc in _keys(Run)}
    about["stages.0.steps"] = "optimiser steps of the first stage"
    lines = [USAGE, "keys used most:", *(f"  {name:18} {about[name]}" for name in COMMON), "", "configurations:"]
    width = max(map(len, loader.names())) + 4
    lines += [fill(f"  {name:{width - 2}}{sentence(name)}", WIDTH, subsequent_indent=" " * width) for name in loader.names()]
    topics = fill(", ".join(["run", *_records(), *OWN]), WIDTH, initial_indent=" " * 34, subsequent_indent=" " * 34)
    return "\n".join([*lines, "", MORE.format(topics=topics)])


def sentence(name: str) -> str:
    """The description of a configuration that comes with the program: the first sentence of its file."""
    comment = []
    for line in (loader.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        comment.append(line[2:])
    return re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(comment), maxsplit=1)[0]


def of(name: str, overrides: Sequence[str] = ()) -> str:
    """Every key of a configuration with its value, stage by stage, one line each."""
    run = loader.load(name, overrides)
    lines = [f"{name}: {sentence(name)}" if name in loader.names() else name,
             f"usage: mpiprop run {shlex.join([name, *overrides])} [key=value ...] [--out DIR] [--resume] [--check]", "",
             "the run:"]
    lines += [_line(key, value, doc) for key, value, doc in _values(run, "") if not key.startswith("stages.")]
    everywhere = [(key, value) for key, value, _ in _values(run.window, "window.")]
    for i, stage in enumerate(run.stages):
        lines += ["", f"stage {i}, {stage.name!r}, {stage.steps} step{'s' * (stage.steps != 1)}:"]
        lines += [_line(key, value, doc) for key, value, doc in _values(stage, f"stages.{i}.")
                  if (key.removeprefix(f"stages.{i}."), value) not in everywhere]
    return "\n".join([*lines, "", "every key that a stage may have, with its default: mpiprop run --help all"])


def complete() -> str:
    """Every key with its type, default and meaning: those of a run, then those of each component."""
    return "\n\n".join([_section("keys of a run:", _keys(Run)), *(_part(part) for part in OWN), *map(_component, plugins())])


def topic(word: str) -> str:
    """One section of the complete manual. Raises UserError with the nearest topic."""
    uses = [*MODULES, *plugins()]
    if word in OWN:
        return _part(word)
    if word in uses:
        return _component(word)
    if word == "run":
        return _section("keys of a run:", [entry for entry in _keys(Run) if "." not in entry[0]])
    if word in _records():
        return _section(f"{word}:", [entry for entry in _keys(Run) if entry[0].startswith(f"{word}.")])
    known = ["all", "run", *_records(), *OWN, *loader.names(), *uses]
    raise UserError(f"{word}: no configuration, file or topic of that name{suggestion(word, known)} (see mpiprop run --help)")


def _records() -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key, _, _, _ in _keys(Run) if "." in key))


def _part(part: str) -> str:
    return "\n\n".join([f"{part}, one of:", *map(_component, OWN[part])])


def _component(use: str) -> str:
    component = find(use)
    entries = [(key, kind, default, component.meanings.get(key, "")) for key, (kind, default) in component.keys.items()]
    about = "".join(f"\n  {line}" for line in component.about.splitlines())
    return _section(f'use: "{use}"{about}', entries)


def _section(head: str, entries: Sequence[tuple[str, Any, Any, str]] | Iterator[tuple[str, Any, Any, str]]) -> str:
    lines = [head]
    for name, kind, default, doc in entries:
        shown = "required" if default is MISSING else f"default {loader.flow(default)}"
        lines += [f"  {name}: {describe_kind(kind)} ({shown})", *([f"      {doc}"] if doc else [])]
    return "\n".join(lines)


def _keys(record: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and meaning of every key of a record and of the records in it."""
    hints = get_type_hints(record)
    for f in fields(record):
        kind, inner = hints[f.name], get_args(hints[f.name])
        if is_dataclass(f.default_factory) and not prefix:
            yield from _keys(kind, f"{f.name}.")
        elif inner and is_dataclass(inner[0]):
            yield from _keys(inner[0], f"{prefix}{f.name}.0.")
        else:
            yield prefix + spelt(f), kind, f.default if f.default_factory is MISSING else {}, f.metadata["doc"]


def _values(record: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """Name, value and meaning of every key of a record and of the records and components in it."""
    for f in fields(record):
        name, value, doc = prefix + spelt(f), getattr(record, f.name), f.metadata["doc"]
        if isinstance(value, Node):
            yield from _component_values(value, name, doc)
        elif is_dataclass(value):
            yield from _values(value, f"{name}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for i, item in enumerate(value):
                yield from _values(item, f"{name}.{i}.")
        else:
            yield name, value, doc


def _component_values(node: Node, name: str, doc: str) -> Iterator[tuple[str, Any, str]]:
    component: Component = find(node.use)
    yield f"{name}.use", node.use, ": ".join(filter(None, [doc, " ".join(component.about.split())]))
    for key, value in node.keys.items():
        if isinstance(value, Node):
            yield from _component_values(value, f"{name}.{key}", "")
        else:
            yield f"{name}.{key}", value, component.meanings.get(key, "")


def _line(key: str, value: Any, doc: str) -> str:
    """A line of help: a key and its value as an override for the shell, and the meaning."""
    if value is None and key in loader.VERBATIM:
        return f"  {key + ': none':{INDENT}}  {doc}"
    literal = isinstance(value, str) and (key in loader.VERBATIM or loader.loads(value, key) == value)
    shown = value if literal else loader.flow(_rounded(value))
    word = f"{key}={shown}"
    if not re.fullmatch(r"[\w.=,:/+-]*", word):
        word = shlex.quote(word) if re.search(r'["$`\\!]', shown) else f'{key}="{shown}"'
    return f"  {word:{INDENT}}  {doc}".rstrip()


def _rounded(value: Any) -> Any:
    """`value` with whole numbers as int, so that they are shown without a decimal point."""
    if isinstance(value, tuple):
        return tuple(map(_rounded, value))
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else value
