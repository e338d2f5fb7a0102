"""The JSON schema of configurations, with which editors complete and check YAML."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mpiprop.config.components import OWN, Node, Text, find, plugins
from mpiprop.config.conversion import plain, spelt
from mpiprop.config.schema import Run

Schema = dict[str, Any]
PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", Text: "string", NoneType: "null"}


def schema() -> Schema:
    """Returns the schema (draft 2020-12) of a whole configuration. Plug-ins that are installed are part of it."""
    definitions = {part: {"anyOf": [_component(use) for use in (*OWN[part], *plugins())]} for part in OWN}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mpiprop configuration",
            "$defs": definitions} | _record(Run)


def _record(record: Any) -> Schema:
    hints = get_type_hints(record)
    keys = {spelt(f): _kind(hints[f.name], spelt(f)) | _bounds(f.metadata) | {"description": f.metadata["doc"]}
            | _default(f.default) for f in fields(record)}
    if "prompts" in keys:  # a file's name stands for the texts in it
        keys["prompts"] = {"anyOf": [{"type": "string"}, *keys["prompts"].pop("anyOf")]} | keys["prompts"]
    required = [spelt(f) for f in fields(record) if f.default is MISSING and f.default_factory is MISSING]
    return {"type": "object", "properties": keys, "additionalProperties": False, "required": required}


def _component(use: str) -> Schema:
    component = find(use)
    keys = {name: _kind(kind, name) | _default(default) | {"description": component.meanings.get(name, "")}
            for name, (kind, default) in component.keys.items()}
    parts = {name: {"$ref": f"#/$defs/{name}"} for name in component.context if name in OWN}
    required = [name for name, (_, default) in component.keys.items() if default is MISSING]
    return {"type": "object", "description": " ".join(component.about.split()), "required": ["use", *required],
            "properties": {"use": {"const": use}} | keys | parts, "additionalProperties": False}


def _kind(kind: Any, name: str) -> Schema:
    """Returns the schema of an annotation, that of the key `name`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Node:
        return {"$ref": f"#/$defs/{name}"} if name in OWN else {"type": "object", "required": ["use"]}
    if is_dataclass(kind):
        return _record(kind)
    if origin is Literal:
        return {"enum": [*args]}
    if origin in (Union, UnionType):
        return {"anyOf": [_kind(arg, name) for arg in args]}
    if origin is tuple and args[-1] is ...:
        return {"type": "array", "items": _kind(args[0], name)}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_kind(arg, name) for arg in args], "minItems": len(args), "items": False}
    if origin is Sequence:  # of a schedule: [[step, value], ...]
        value = _kind(get_args(args[0])[0], name)
        return {"type": "array", "minItems": 1, "items": {
            "type": "array", "prefixItems": [{"type": "number"}, value], "minItems": 2, "items": False}}
    if origin is dict:
        return {"type": "object", "additionalProperties": _kind(args[1], name)}
    return {"type": PLAIN[kind]} if kind in PLAIN else {}  # a plug-in may ask for what YAML cannot hold


def _bounds(metadata: Any) -> Schema:
    return {name: metadata[bound] for name, bound in (("minimum", "lo"), ("maximum", "hi")) if metadata[bound] is not None}


def _default(default: Any) -> Schema:
    return {} if default is MISSING else {"default": plain(default)}
