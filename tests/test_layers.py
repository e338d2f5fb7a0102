"""The house plan: imports go down, heavy packages have one door and load when needed, every draw is keyed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mpiprop"
LAYERS = [("core",), ("config",), ("corpus", "geometry", "picard", "views"), ("optim", "transport"),
          ("priors", "shapes"), ("appearance", "conditioning", "estimators"), ("guidance", "render"), ("objective",),
          ("io", "metrics", "planning"), ("report",), ("run",), ("cli",), ("__main__",)]
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
DOORS = {
    "mpi4py": ("transport/",),
    "h5py": ("conditioning/store.py", "run/checkpoint.py", "run/checkpoint_file.py"),
    "yaml": ("config/",),
    "jinja2": ("report/",),
    "diffusers": ("priors/", "estimators/"),
    "peft": ("priors/",),
    "transformers": ("priors/", "estimators/", "metrics/"),
    "huggingface_hub": ("priors/",),
    "nerfacc": ("render/",),
    "nvdiffrast": ("render/",),
    "gsplat": ("render/",),
    "plyfile": ("shapes/",),
    "tinycudann": ("shapes/",),
    "skimage": ("geometry/", "io/", "metrics/"),
    "trimesh": ("cli/", "geometry/", "io/", "metrics/", "shapes/"),
    "xatlas": ("io/",),
    "fast_simplification": ("io/",),
    "scipy": ("io/", "metrics/", "shapes/"),
    "PIL": ("cli/", "io/", "metrics/"),
    "rembg": ("io/",),
    "viser": ("cli/",),
}
HEAVY = set(DOORS) - {"mpi4py", "h5py", "yaml"} | {"accelerate", "matplotlib"}
DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
         "multinomial", "poisson", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "trunc_normal_",
         "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_", "manual_seed"}
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(), str(path))
         for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: str, tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """The dotted parts of everything that a module imports, at its top or later."""
    here = ("mpiprop", *Path(path).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = (*(here[:-node.level] if node.level else ()), *(node.module.split(".") if node.module else ()))
            yield from ((*origin, alias.name) for alias in node.names)


def test_imports_go_down() -> None:
    """A module imports from lower layers and from its own package; siblings never import each other."""
    wrong = []
    for path, tree in TREES.items():
        own = Path(path).with_suffix("").parts[0]
        for parts in imports(path, tree):
            if parts[0] == "mpiprop" and len(parts) > 1 and parts[1] not in (own, "__version__"):
                if parts[1] not in LAYER or LAYER[parts[1]] >= LAYER[own]:
                    wrong.append(f"{path} imports {'.'.join(parts)}")
    assert not wrong


def test_modules_do_not_import_in_circles() -> None:
    below = {path: {"/".join(parts[1:n]) + ".py" for parts in imports(path, tree) for n in (2, 3)} & set(TREES) - {path}
             for path, tree in TREES.items()}
    while free := {path for path, lower in below.items() if not lower}:
        below = {path: lower - free for path, lower in below.items() if path not in free}
    assert not below


def test_heavy_packages_come_in_by_one_door() -> None:
    wrong = [f"{path} imports {parts[0]}" for path, tree in TREES.items() for parts in imports(path, tree)
             if parts[0] in DOORS and not path.startswith(DOORS[parts[0]])]
    assert not wrong


def loaded(program: str) -> set[str]:
    """The top-level packages that a program has loaded when it ends."""
    program += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT).split())


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    """Every rank starts with this; models, meshes and pictures come with the call that needs them."""
    packages = loaded("from mpiprop.config import loader\nfrom mpiprop.run import program\n"
                      "for name in loader.names(): loader.load(name)")
    assert {"torch", "yaml"} <= packages and not HEAVY & packages


def test_signals_are_heard_before_torch_is_loaded() -> None:
    """The program listens before it imports what takes long: a signal in between must not kill the job."""
    assert not loaded("import mpiprop.__main__") & (HEAVY | {"torch", "mpi4py", "numpy", "h5py", "yaml"})


def test_draws_are_keyed() -> None:
    """No call draws from a global generator: all are given one, or are made of what `core.streams` gives."""
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DRAWS:
                keyed = any(keyword.arg == "generator" for keyword in node.keywords)
                fresh = ast.unparse(node).startswith("Generator().manual_seed(")
                if not keyed and not fresh:
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
        wrong += [f"{path} imports {'.'.join(parts)}" for parts in imports(path, tree)
                  if parts[0] == "random" or parts[:2] == ("numpy", "random")]
    assert not wrong


@pytest.mark.parametrize("folder", ["mpiprop", "tests", "tools"])
def test_no_file_is_a_hall_or_a_lumber_room(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert not [path.name for path in files if len(path.read_text().splitlines()) > 400]
    assert not [path.name for path in files if path.stem in ("utils", "util", "misc", "helpers", "common")]


def test_no_error_is_swallowed() -> None:
    """No bare except, no `except Exception: pass`."""
    handlers = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree)
                if isinstance(node, ast.ExceptHandler)]
    assert not [f"{path}:{node.lineno}" for path, node in handlers
                if node.type is None or isinstance(node.body[0], ast.Pass) and ast.unparse(node.type) == "Exception"]


def test_every_module_says_what_it_is() -> None:
    assert not [path for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
