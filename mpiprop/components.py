"""Components by name, and the checks between plain data and annotations.

`use: "shapes.hashgrid:HashGrid"` names a class in a module of mpiprop, or in any importable one. Its keyword-only
parameters are its keys: their names, annotations, defaults and the `name: text` lines of the class's docstring are all
there is to know, so no default lives in two places. Its positional parameters are given by the program; one of them may
be configured by a nested component of its name (`guidance: {use: ..., prior: {use: ...}}`), which is built first.
"""

import importlib
import inspect
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .core.errors import UserError

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Node:
    """A component to be built: its class and all of its keys."""

    use: str
    keys: Mapping[str, Any]
    path: str = field(default="", compare=False)  # where it stands in the configuration, for messages

    def part(self, name: str) -> "Node":
        """The nested component `name`. Raises UserError where there is none."""
        if not isinstance(self.keys.get(name), Node):
            raise UserError(f"{self.path}.{name}: missing; {self.use} needs a component there ({{use: ...}})")
        return self.keys[name]


def takes(node: Node, name: str) -> bool:
    """Whether a component is given `name` by the program."""
    return name in parameters(resolve(node.use))[0]


def needs(node: Node, name: str) -> bool:
    """Whether a component, or one nested in it, is given `name` by the program."""
    inner = (value for value in node.keys.values() if isinstance(value, Node))
    return takes(node, name) or any(needs(part, name) for part in inner)


def key(doc: str, default: Any = MISSING, *, lo: float | None = None, hi: float | None = None) -> Any:
    """A record's field with its line of the manual and its bounds (included)."""
    metadata = {"doc": doc, "lo": lo, "hi": hi}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def spelt(field_: Field) -> str:
    """The key of a record's field: its name, without the underscore that keeps it from being a word of Python."""
    return field_.name.rstrip("_")


@cache
def resolve(use: str) -> Callable[..., Any]:
    """The class that `use` names. Raises UserError with the nearest name where there is none."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", use):
        raise UserError(f"{use!r}: needs 'module:Class'")
    module, name = use.split(":")
    full = next((full for full in (f"mpiprop.{module}", module) if _exists(full)), None)
    if full is None:
        ours = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")]
        raise UserError(f"no module {module!r}{suggestion(module, ours)}")
    try:
        found = importlib.import_module(full)
    except ImportError as error:
        raise UserError(f"{use} needs a package that does not load here: {error}") from None
    if not callable(getattr(found, name, None)):
        raise UserError(f"no {name!r} in {module}{suggestion(name, [cls.__name__ for cls in classes(found)])}")
    return getattr(found, name)


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def classes(module: ModuleType) -> list[type]:
    """The classes that a module defines."""
    return [cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__]


@cache
def parameters(component: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, tuple[Any, Any]]]:
    """What the program gives to a component (names), and its keys: annotation and default of each."""
    hints = get_type_hints(component.__init__ if inspect.isclass(component) else component)
    every = inspect.signature(component).parameters.values()
    context = tuple(p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return context, {p.name: (hints[p.name], MISSING if p.default is p.empty else p.default)
                     for p in every if p.kind is p.KEYWORD_ONLY}


def build(node: Node, *context: Any, **given: Any) -> Any:
    """The component of `node`, given its positional parameters and, by name, what replaces keys of it."""
    component = resolve(node.use)
    keys = {name: value for name, value in node.keys.items() if name in parameters(component)[1]}
    try:
        return component(*context, **(keys | given))
    except UserError as error:
        raise UserError(f"{node.path}: {error}") from None


class _Mismatch(UserError):
    """A value of another kind than its key's."""

    def __init__(self, path: str, kind: Any, value: Any) -> None:
        super().__init__(f"{path}: needs {describe_kind(kind)}, got {'null' if value is None else reprlib.repr(value)}")
        self.path = path


def convert(kind: Any, value: Any, path: str) -> Any:
    """`value` as the annotation `kind` has it: records and Nodes built, lists as tuples, whole numbers as floats."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Node:
        return _node(value, path)
    if is_dataclass(kind):
        return _record(kind, {} if value is None else value, path)
    if origin in (Union, UnionType):
        return _one_of(args, kind, value, path)
    if origin is Literal and any(type(value) is type(arg) and value == arg for arg in args):
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        if len(kinds) == len(value):
            return tuple(convert(one, item, f"{path}.{i}") for i, (one, item) in enumerate(zip(kinds, value)))
    if origin is Sequence and isinstance(value, (list, tuple)):
        return _knots(kind, get_args(args[0])[0], value, path)
    if origin is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: convert(args[1], item, f"{path}.{name}") for name, item in value.items()}
    if kind is float and type(value) in (int, float) and -1e308 <= value <= 1e308:
        return float(value)
    if kind in (bool, int, str, NoneType) and type(value) is kind:
        return value
    raise _Mismatch(path, kind, value)


def _one_of(kinds: Sequence[Any], kind: Any, value: Any, path: str) -> Any:
    deeper = None
    for one in kinds:
        try:
            return convert(one, value, path)
        except _Mismatch as error:
            deeper = deeper or (error if error.path != path else None)
    raise deeper or _Mismatch(path, kind, value)


def _knots(kind: Any, number: Any, value: Sequence[Any], path: str) -> tuple[tuple[float, Any], ...]:
    if not value or not all(isinstance(knot, (list, tuple)) and len(knot) == 2 for knot in value):
        raise _Mismatch(path, kind, value)
    knots = tuple((convert(int | float, step, f"{path}.{i}.0"), convert(number, at, f"{path}.{i}.1"))
                  for i, (step, at) in enumerate(value))
    if any(later[0] <= earlier[0] for earlier, later in zip(knots, knots[1:])):
        raise UserError(f"{path}: the steps of a schedule ascend, got {[step for step, _ in knots]}")
    return knots


def _record(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(path, kind, value)
    known, hints, prefix = {spelt(f): f for f in fields(kind)}, get_type_hints(kind), f"{path}." if path else ""
    for name in value:
        if name not in known:
            raise UserError(f"{prefix}{name}: unknown key{suggestion(name, known)}")
    given = {}
    for name, f in known.items():
        if name in value:
            given[f.name] = convert(hints[f.name], value[name], prefix + name)
            _within(given[f.name], f.metadata["lo"], f.metadata["hi"], prefix + name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{prefix}{name}: missing; needs {describe_kind(hints[f.name])}")
    return kind(**given)


def _within(value: Any, lo: float | None, hi: float | None, path: str) -> None:
    if type(value) not in (int, float):
        return
    if lo is not None and value < lo or hi is not None and value > hi:
        bounds = f"of at least {lo}" if hi is None else f"in [{lo}, {hi}]"
        raise UserError(f"{path}: needs a number {bounds}, got {value}")


def _node(value: Any, path: str) -> Node:
    if not isinstance(value, dict) or not isinstance(value.get("use"), str):
        raise _Mismatch(path, Node, value)
    try:
        context, keys = parameters(resolve(value["use"]))
    except UserError as error:
        raise UserError(f"{path}.use: {error}") from None
    parts = [name for name, part in value.items() if name in context and isinstance(part, dict)]
    for name in value:
        if name != "use" and name not in keys and name not in parts:
            raise UserError(f"{path}.{name}: unknown key{suggestion(name, keys)}")
    given = {}
    for name, (kind, default) in keys.items():
        if name not in value and default is MISSING:
            raise UserError(f"{path}.{name}: missing; needs {describe_kind(kind)}")
        given[name] = convert(kind, value.get(name, default), f"{path}.{name}")
    return Node(value["use"], given | {name: _node(value[name], f"{path}.{name}") for name in parts}, path)


def plain(value: Any) -> Any:
    """What `convert` read, as plain data again."""
    if isinstance(value, Node):
        return {"use": value.use} | {name: plain(item) for name, item in value.keys.items()}
    if is_dataclass(value):
        return {spelt(f): plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def suggestion(word: str, words: Collection[str]) -> str:
    """The end of a message about an unknown word: the nearest valid one, or all of them."""
    near = get_close_matches(str(word), words, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(words) or 'none'}"


def describe_kind(kind: Any) -> str:
    """What a user writes for an annotation."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, UnionType):
        return " | ".join(map(describe_kind, args))
    if origin is tuple:
        return f"[{', '.join('...' if arg is ... else describe_kind(arg) for arg in args)}]"
    if origin is Sequence:
        return f"[[step, {describe_kind(get_args(args[0])[0])}], ...]"
    if origin is dict:
        return f"{{name: {describe_kind(args[1])}}}"
    if kind is Node:
        return "{use: module:Class, ...}"
    if is_dataclass(kind):
        return f"{{{', '.join(f.name for f in fields(kind))}}}"
    return {bool: "true | false", int: "whole number", float: "number", str: "text", NoneType: "null"}[kind]
