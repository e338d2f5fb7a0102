"""Converts plain data, as YAML holds it, to the types of annotations, and back: records, components, schedules, numbers.

A record is a frozen dataclass whose fields are made by `key`. A mistake raises UserError: one line with the path of the key and
what is valid there.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mpiprop.config.components import FORMER, Node, Text, find, placed
from mpiprop.core.errors import UserError, suggestion


def key(doc: str, default: Any = MISSING, *, lo: float | None = None, hi: float | None = None) -> Any:
    """A field of a record: its line in the manual, its default (a class: made anew), its bounds (inclusive)."""
    metadata = {"doc": doc, "lo": lo, "hi": hi}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def spelt(field_: Field) -> str:
    """The key of a record's field: its name without a trailing underscore, which keeps it apart from another name."""
    return field_.name.rstrip("_")


class _Mismatch(UserError):
    """A value of another type than its key's."""

    def __init__(self, path: str, kind: Any, value: Any) -> None:
        super().__init__(f"{path}: needs {describe_kind(kind)}, got {'null' if value is None else reprlib.repr(value)}")
        self.path = path


def convert(kind: Any, value: Any, path: str) -> Any:
    """Convert `value` to the type of the annotation `kind`: records and Nodes, tuples of lists, floats of whole numbers.

    path: where the value stands in the configuration, for messages
    """
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
    if kind in (bool, int, str, NoneType) and type(value) is kind or kind is Text and type(value) is str:
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


def _record(kind: Any, value: Any, path: str) -> Any:
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
    use = str(value["use"])
    use = FORMER.get(use, use)
    with placed(f"{path}.use"):
        component = find(use, path.rpartition(".")[2])
    keys, parts = component.keys, [name for name, part in value.items() if name in component.context and isinstance(part, dict)]
    for name in value:
        if name != "use" and name not in keys and name not in parts:
            raise UserError(f"{path}.{name}: unknown key{suggestion(name, keys)}")
    given = {}
    for name, (kind, default) in keys.items():
        if name not in value and default is MISSING:
            raise UserError(f"{path}.{name}: missing; needs {describe_kind(kind)}")
        given[name] = convert(kind, value.get(name, default), f"{path}.{name}")
    return Node(use, given | {name: _node(value[name], f"{path}.{name}") for name in parts}, path)


def plain(value: Any) -> Any:
    """The inverse of `convert`: plain data."""
    if isinstance(value, Node):
        return {"use": value.use} | {name: plain(item) for name, item in value.keys.items()}
    if is_dataclass(value):
        return {spelt(f): plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def describe_kind(kind: Any) -> str:
    """The type of an annotation, in the words of messages and the manual."""
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
        return "{use: NAME, ...}"
    if is_dataclass(kind):
        return f"{{{', '.join(f.name for f in fields(kind))}}}"
    names = {bool: "true | false", int: "whole number", float: "number", str: "text", NoneType: "null"}
    return names.get(kind, str(kind))  # the latter only where a plug-in asks for what YAML cannot hold
