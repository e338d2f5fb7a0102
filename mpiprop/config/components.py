"""The components that `use` may name, and the keys of each.

A component is a class of mpiprop that OWN lists, or one that an installed package registers as an entry point of the group
GROUP; nothing else that a configuration names is imported. The keyword-only parameters of its constructor are its keys: names,
annotations and defaults are read from the signature, meanings from the `name: text` lines of the class's docstring. For
mpiprop's own classes both are read from the source, because importing them loads torch. Positional parameters are given by the
program; one of them may be configured by a nested component of its name (`guidance: {use: ..., prior: {use: ...}}`), which is
built first.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NewType, get_type_hints

from mpiprop.core.errors import UserError, suggestion
from mpiprop.core.schedules import Schedule

Text = NewType("Text", str)
"""The annotation of a guidance's key whose text is encoded with the prompt; {prompt} in it stands for the prompt."""

PACKAGE = Path(__file__).parents[1]
GROUP = "mpiprop.components"
OWN: dict[str, dict[str, str]] = {  # by the part of a stage that it can be: name of the class, and its module
    "shape": {"HashGrid": "shapes.fields.hashgrid", "SDF": "shapes.fields.sdf", "DMTet": "shapes.surfaces.dmtet",
              "TexturedMesh": "shapes.surfaces.textured", "Gaussians": "shapes.clouds.gaussians",
              "HyperINGP": "shapes.generators.hyper_ingp", "Conv3D": "shapes.generators.conv3d",
              "Triplane": "shapes.generators.triplane"},
    "material": {"Diffuse": "appearance.materials", "NoMaterial": "appearance.materials",
                 "Normals": "appearance.materials"},
    "background": {"Solid": "appearance.backgrounds", "NeuralEnvironment": "appearance.backgrounds",
                   "HashEnvironment": "appearance.backgrounds", "HyperEnvironment": "appearance.backgrounds"},
    "render": {"Volume": "render.volume", "Mesh": "render.mesh", "Splat": "render.splat", "VolSDF": "render.volsdf"},
    "views": {"Random": "views.samplers", "Reference": "views.samplers"},
    "guidance": {"SDS": "guidance.sds", "SJC": "guidance.sjc", "VSD": "guidance.vsd", "CSD": "guidance.csd",
                 "ASD": "guidance.asd", "NFSD": "guidance.nfsd", "ISM": "guidance.ism", "SDI": "guidance.sdi",
                 "CDS": "guidance.cds", "Bridge": "guidance.bridge", "Refine": "guidance.refine",
                 "Likeness": "guidance.reference"},
    "prior": {"ClosedForm": "priors.closed_form", "StableDiffusion": "priors.diffusion", "DeepFloyd": "priors.diffusion",
              "MVDream": "priors.mvdream", "Zero123": "priors.zero123"},
    "prompts": {"Plain": "conditioning.text", "Four": "conditioning.text", "Eight": "conditioning.text",
                "Cameras": "conditioning.camera", "FromPicture": "conditioning.picture"},
    "lora": {"Lora": "priors.lora"},
    "variates": {"Stein": "guidance.stein", "Noise": "guidance.stein"},
    "estimator": {"DPT": "estimators.depth", "DepthAnything": "estimators.depth"},
    "decoder": {"TinyDecoder": "estimators.decoder"},
    "optimiser": {"Adam": "optim.optimisers", "AdamW": "optim.optimisers", "Adan": "optim.optimisers",
                  "SGD": "optim.optimisers"},
}
MODULES = {name: module for part in OWN.values() for name, module in part.items()}
FORMER = {  # names until version 0.1, as configurations and checkpoints written by it have them
    f"{module}:{name}": name for module, names in {
        "shapes.hashgrid": ("HashGrid",), "shapes.sdf": ("SDF",), "shapes.dmtet": ("DMTet",),
        "shapes.gaussians": ("Gaussians",), "shapes.textured": ("TexturedMesh",),
        "shapes.materials": ("Diffuse", "NoMaterial", "Normals"), "shapes.backgrounds": ("Solid", "NeuralEnvironment"),
        "render.volume": ("Volume",), "render.mesh": ("Mesh",), "render.splat": ("Splat",),
        "views.samplers": ("Random", "Reference"), "guidance.sds": ("SDS",), "guidance.vsd": ("VSD",),
        "guidance.refine": ("Refine",), "guidance.reference": ("Likeness",), "priors.closed_form": ("ClosedForm",),
        "priors.diffusion": ("StableDiffusion", "DeepFloyd"), "priors.mvdream": ("MVDream", "Cameras"),
        "priors.zero123": ("Zero123", "FromPicture"), "priors.prompts": ("Plain", "Four", "Eight"),
        "priors.lora": ("Lora",), "picard.rollout": ("Adam", "AdamW", "Adan", "SGD")}.items() for name in names}


@dataclass(frozen=True)
class Component:
    """A class that `use` may name."""

    use: str
    docs: tuple[str, ...]  # of the class, and of those that its other keys come from
    context: tuple[str, ...]  # parameters that the program gives
    keys: Mapping[str, tuple[Any, Any]]  # annotation and default of each; MISSING: no default

    @property
    def about(self) -> str:
        """What it is: the docstring's first paragraph."""
        return self.docs[0].partition("\n\n")[0]

    @property
    def meanings(self) -> dict[str, str]:
        """The docstring's line about each key."""
        lines = (re.findall(r"(?m)^(\w+): (.*(?:\n +.*)*)", doc) for doc in reversed(self.docs))
        return {name: " ".join(text.split()) for found in lines for name, text in found}

    def load(self) -> type:
        """The class itself, imported now. Raises UserError where it needs a package that is not there."""
        if self.use in plugins():
            return _loaded(self.use)
        try:
            return getattr(importlib.import_module(f"mpiprop.{MODULES[self.use]}"), self.use)
        except ImportError as error:
            raise UserError(f"{self.use} needs a package that does not load here: {error}") from None


@dataclass(frozen=True)
class Node:
    """The configuration of one component: the class that `use` names, and the values of all its keys."""

    use: str
    keys: Mapping[str, Any]
    path: str = field(default="", compare=False)  # where it stands in the configuration, for messages

    @property
    def title(self) -> str:
        """What messages call it: its class, and its model where it has one."""
        model = self.keys.get("model")
        return self.use if model is None else f"{model} {self.use}" if model == "builtin" else f"{self.use} {model}"

    def part(self, name: str) -> "Node":
        """The nested component `name`. Raises UserError where there is none."""
        if not isinstance(self.keys.get(name), Node):
            raise UserError(f"{self.path}.{name}: missing; {self.use} needs a component there ({{use: ...}})")
        return self.keys[name]


def takes(node: Node, name: str) -> bool:
    """Whether a component is given `name` by the program."""
    return name in find(node.use).context


def needs(node: Node, name: str) -> bool:
    """Whether a component, or one nested in it, is given `name` by the program."""
    inner = (value for value in node.keys.values() if isinstance(value, Node))
    return takes(node, name) or any(needs(part, name) for part in inner)


def build(node: Node, *context: Any, **given: Any) -> Any:
    """Build the component that `node` configures.

    context: its positional parameters
    given: further parameters by name, and values that replace those of its keys
    Raises UserError, which begins with the path of the node, for values that the component refuses.
    """
    component = find(node.use)
    keys = {name: value for name, value in node.keys.items() if name in component.keys}
    with placed(node.path):
        made = component.load()
        try:
            inspect.signature(made).bind(*context, **(keys | given))
        except TypeError:
            raise UserError(f"{node.use} cannot stand here: it needs other things than this place gives") from None
        return made(*context, **(keys | given))


def texts(node: Node) -> dict[str, str]:
    """The values of the keys whose annotation is Text, by name."""
    return {name: node.keys[name] for name, (kind, _) in find(node.use).keys.items() if kind is Text}


@contextmanager
def placed(path: str) -> Iterator[None]:
    """Put `path` before the messages of UserErrors raised inside.

    Errors of arithmetic and of memory are raised as UserErrors too: inside, they come from the user's values.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise UserError(f"{path}: does not fit into the memory here; lower its sizes") from error
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path}: does not work with these values ({type(error).__name__}: {first})") from error


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, of the host or a GPU, does not suffice."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "out of memory"))


@cache
def find(use: str, part: str = "") -> Component:
    """The component that `use` names.

    part: the part of a stage that it has to be (a key of OWN); anything else: any part
    Raises UserError with the nearest valid name.
    """
    kind = next((kind for kind, uses in OWN.items() if use in uses), None)
    own = OWN.get(part) or MODULES
    if kind and part in OWN and kind != part:
        raise UserError(f"{use} is for {kind!r}, not for {part!r}{suggestion(use, own)}")
    if kind:
        return _read(use)
    if use in plugins():
        return _inspected(use)
    raise UserError(f"{use!r} is not a component of mpiprop or of an installed plug-in{suggestion(use, [*own, *plugins()])}")


@cache
def plugins() -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points of installed packages, by name. Names of mpiprop's own components are left out."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in MODULES:
            found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def _loaded(use: str) -> type:
    """Import the class that an installed package registers as `use`."""
    entry, *others = plugins()[use]
    packages = sorted(found.dist.name for found in (entry, *others) if found.dist)
    if others:
        raise UserError(f"{use!r} is registered by several packages, {' and '.join(packages)}: uninstall all but one")
    who = f"{use!r} of the package {packages[0]}"
    try:
        component = entry.load()
    except Exception as error:  # whatever another package's code raises
        raise UserError(f"{who} does not load: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    if not inspect.isclass(component):
        raise UserError(f"{who} is {entry.value}, which is not a class")
    return component


def _inspected(use: str) -> Component:
    """The component of an installed package, which is imported for that."""
    component = _loaded(use)
    every = inspect.signature(component).parameters.values()
    context = tuple(p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    docs: list[str] = []
    keys: dict[str, tuple[Any, Any]] = {}
    for cls in (cls for cls in inspect.getmro(component) if "__init__" in vars(cls)):
        init = vars(cls)["__init__"]
        hints, own = get_type_hints(init), inspect.signature(init).parameters.values()
        docs.append(inspect.cleandoc(cls.__doc__ or ""))
        keys = {p.name: (hints.get(p.name), MISSING if p.default is p.empty else p.default)
                for p in own if p.kind is p.KEYWORD_ONLY} | keys
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return Component(use, (inspect.getdoc(component) or "", *docs), context, keys)


def _read(use: str) -> Component:
    """The component of mpiprop's own, read from its source.

    The keys of a constructor that takes `**keys` are completed by those of its base class.
    """
    module, cls = _class(MODULES[use], use)
    docs, context = [_doc(cls)], None
    keys: dict[str, tuple[Any, Any]] = {}
    while True:
        module, cls, init = _constructor(module, cls)
        docs.append(_doc(cls))
        context = context or tuple(arg.arg for arg in init.args.args[1:])
        keys = {arg.arg: (_value(module, arg.annotation), MISSING if default is None else _value(module, default))
                for arg, default in zip(init.args.kwonlyargs, init.args.kw_defaults)} | keys
        if init.args.kwarg is None:
            return Component(use, tuple(docs), context, keys)
        module, cls = _base(module, cls)


def _doc(node: ast.ClassDef) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "")


def _constructor(module: str, cls: ast.ClassDef) -> tuple[str, ast.ClassDef, ast.FunctionDef]:
    """The constructor of a class or of the nearest base that has one, after the module and the class that it is in."""
    for inner in cls.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return module, cls, inner
    return _constructor(*_base(module, cls))


def _base(module: str, cls: ast.ClassDef) -> tuple[str, ast.ClassDef]:
    return _class(module, ast.unparse(cls.bases[0]))


def _class(module: str, name: str) -> tuple[str, ast.ClassDef]:
    module, node = _definition(module, name)
    assert isinstance(node, ast.ClassDef)
    return module, node


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr]:
    """The definition of a module's `name`, a class or an assigned value, after the module that it is in.

    Imports from within mpiprop are followed.
    """
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            package, _, origin = (node.module or "").partition(".")
            if package == "mpiprop":
                return _definition(origin, name)
    raise KeyError(name)


@cache
def _tree(module: str) -> ast.Module:
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


class _Names(dict):
    """The names that annotations and defaults of a module of mpiprop may use."""

    def __init__(self, module: str) -> None:
        super().__init__(Schedule=Schedule, Literal=Literal, Sequence=Sequence, Node=Node, Text=Text)
        self.module = module

    def __missing__(self, name: str) -> Any:
        return _value(*_definition(self.module, name))


def _value(module: str, node: ast.AST | None) -> Any:
    assert isinstance(node, ast.expr)
    return eval(compile(ast.Expression(node), module, "eval"), {}, _Names(module))
