"""What is installed is what the checkout holds, and the two commands of a fresh clone do what they say."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INDIRECT = {"accelerate", "protobuf", "sentencepiece"}  # what diffusers and transformers load models and T5's texts by
IMPORTED_AS = {"huggingface-hub": "huggingface_hub", "pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage",
               "fast-simplification": "fast_simplification"}


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> set[str]:
    return {re.split(r"[<>=~!;\[ ]", line)[0] for line in text.split("\n") if line}


def test_packages_imported_are_packages_declared(setup: configparser.ConfigParser) -> None:
    imported = set()
    for path in (ROOT / "mpiprop").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    declared = requirements(setup["options"]["install_requires"])
    extras = setup["options.extras_require"]
    optional = set().union(*(requirements(extras[name]) for name in ("cuda", "image", "view")))
    optional |= {"tinycudann", "nvdiffrast"}  # built by hand
    assert {IMPORTED_AS.get(name, name) for name in declared - INDIRECT} == \
        imported - set(sys.stdlib_module_names) - optional - {"mpiprop"}


def test_constraints_pin_everything_declared(setup: configparser.ConfigParser) -> None:
    lines = (ROOT / "tools/constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    extras = setup["options.extras_require"]
    declared = requirements(setup["options"]["install_requires"] + extras["test"] + "\n" + extras["mpi"])
    assert {name.lower() for name in declared} <= pinned


@pytest.mark.slow
def test_a_wheel_holds_every_module_configuration_and_weight_and_works_anywhere(tmp_path: Path) -> None:
    source, away = tmp_path / "source", tmp_path / "away"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "dist", "tests", "*.egg-info",
                                                                "__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("mpiprop-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(away)
    files = {path.relative_to(ROOT) for folder in ("mpiprop", "configs") for path in (ROOT / folder).rglob("*")
             if path.is_file() and "__pycache__" not in path.parts and (folder == "mpiprop" or path.suffix == ".yaml")}
    assert held == {str(path) if path.parts[0] == "mpiprop" else f"mpiprop/{path}" for path in files}

    program = "from mpiprop import __version__; from mpiprop.config import loader; " \
              "[loader.load(name) for name in loader.names()]; print(loader.CONFIGS, __version__, *loader.names())"
    said = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=tmp_path,
                                   env=os.environ | {"PYTHONPATH": str(away)}).split()
    names = sorted(path.relative_to(ROOT / "configs").with_suffix("").as_posix()
                   for path in (ROOT / "configs").rglob("*.yaml"))
    assert said == [str(away / "mpiprop/configs"), wheel.name.split("-")[1], *names]
    entry = next(away.glob("*.dist-info/entry_points.txt")).read_text()
    assert "mpiprop = mpiprop.__main__:main" in entry


@pytest.mark.parametrize("script", ["tools/demo", "tools/test", "tools/env.sh", ".ci/run"])
def test_scripts_are_sound(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK) == (not script.endswith(".sh"))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose environment is set up, with stand-ins that write down how they were called."""
    clone = tmp_path / "a clone"
    shutil.copytree(ROOT / "tools", clone / "tools")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    programs = clone / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "mpirun"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" "$OMP_NUM_THREADS" >>"$CALLS"\n')
        (programs / name).chmod(0o755)
    stamp = subprocess.check_output("cat setup.cfg pyproject.toml tools/constraints.txt | cksum", shell=True, text=True,
                                    cwd=clone)
    (clone / ".venv/mpiprop.stamp").write_text(f"{stamp.strip()} {clone}\n")
    return clone


@pytest.mark.parametrize(("arguments", "prompt", "rest"), [
    ([], "a green mushroom", []), (["an orange chair"], "an orange chair", []),
    (['it\'s "so": $HOME\n* \\', "seed=3"], 'it\'s "so": $HOME\n* \\', ["seed=3"])])
def test_the_demo_runs_its_prompt_unharmed_from_anywhere(clone: Path, tmp_path: Path, arguments: list[str], prompt: str,
                                                         rest: list[str]) -> None:
    calls = tmp_path / "calls"
    environment = {name: value for name, value in os.environ.items() if name != "VENV"}  # set where CI runs this
    subprocess.run([clone / "tools/demo", *arguments], check=True, cwd="/",
                   env=environment | {"CALLS": str(calls), "OMP_NUM_THREADS": "8"})
    expected = ["python", "-m", "mpiprop", "run", "demo", "--ranks", "3", f"prompt={prompt}", *rest, "1"]
    assert calls.read_text() == "\n".join(expected) + "\n"


def test_the_test_command_checks_style_and_types_and_then_runs_what_is_asked_for(clone: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    subprocess.run([clone / "tools/test", "tests/test_layers.py"], check=True, cwd="/",
                   env={name: value for name, value in os.environ.items() if name != "VENV"} | {"CALLS": str(calls)})
    assert calls.read_text().split() == ["python", "-m", "flake8", "mpiprop", "tests", "tools", "1",
                                         "python", "-m", "mypy", "1",
                                         "python", "-m", "pytest", "-q", "-rs", "-n", "2", "--dist", "loadfile",
                                         "--no-loadscope-reorder",
                                         "tests/test_layers.py", "1"]
