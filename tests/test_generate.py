"""The command `generate`, on generators that the program has trained for some steps, and what is exported of them."""

import json
import re
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
import trimesh
import yaml
from conftest import Mpirun
from PIL import Image

from mpiprop.cli.generation import name_of
from mpiprop.cli.main import dispatch
from mpiprop.config.prompts import read_prompts
from mpiprop.core.errors import RunError, UserError
from mpiprop.corpus.truth import truth
from mpiprop.geometry.triangles import signed_distance
from mpiprop.metrics.truth import likeness
from mpiprop.run.generator import Trained

PROMPTS = ["a red ball", "a blue ball"]
MANY = [*PROMPTS, "a green ball", "a Red ball", "a white disc"]


def configured(**keys: object) -> dict:
    """A small generator of balls."""
    guidance = {"use": "SDS", "prior": {"use": "ClosedForm"}, "prompts": {"use": "Plain"}, "scale": 2.0}
    shape = {"use": "HyperINGP", "radius": 1.0, "text_width": 3, "levels": 3, "log2_table": 8, "base_resolution": 4,
             "hidden": 8}
    return {"prompts": PROMPTS, "stages": [{
        "name": "balls", "steps": 20, "shape": shape, "material": {"use": "NoMaterial"},
        "background": {"use": "HyperEnvironment", "text_width": 3, "levels": 2, "hidden": 8, "eval_colour": [1, 1, 1]},
        "render": {"use": "VolSDF", "proposal": 16, "importance": 8}, "optimiser": {"use": "Adan", "lr": 0.03},
        "terms": [{"name": "novel", "views": {"use": "Random", "batch": 2, "size": 8}, "guidance": guidance}]}],
        "turntable": {"frames": 4, "size": 16}, "mesh": {"resolution": 12, "faces": 200, "texture": 32},
        "preview": {"every_s": 0, "size": 16, "views": 2}} | keys


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "balls.yaml").write_text(yaml.dump(configured()))
    assert dispatch(["run", str(folder / "balls.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def generate(*words: object) -> int:
    return dispatch(["generate", *map(str, words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_mesh_of_a_prompt_is_the_one_that_the_run_ends_with(trained: Path, tmp_path: Path) -> None:
    """The run's results are of its first prompt."""
    assert generate(trained, PROMPTS[0], "--out", tmp_path) == 0
    assert (tmp_path / "a-red-ball.glb").read_bytes() == (trained / "mesh.glb").read_bytes()
    assert Image.open(tmp_path / "a-red-ball.gif").n_frames == 4
    assert Image.open(tmp_path / "a-red-ball.views.png").size == (32, 16)
    assert Image.open(tmp_path / "contact-sheet.png").width > 32


def test_all_formats_read_back(trained: Path, tmp_path: Path) -> None:
    assert generate(trained, *PROMPTS, "--format", "glb,obj,ply,gif", "--resolution", "10", "--interpolate",
                    "--out", tmp_path) == 0
    boxes = [trimesh.load_mesh(tmp_path / f"a-blue-ball.{form}").extents for form in ("glb", "obj", "ply")]
    assert 0.9 < max(boxes[0]) < 2
    for box in boxes:
        np.testing.assert_allclose(sorted(box), sorted(boxes[0]), rtol=1e-4)
    assert (tmp_path / "a-blue-ball.png").exists()
    assert Image.open(tmp_path / "a-red-ball--a-blue-ball.gif").n_frames == 4


@pytest.mark.mpi
def test_any_number_of_ranks_makes_the_same_files_and_only_those_that_are_missing(
        mpirun: Mpirun, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(MANY))
    words = ["generate", trained, "--prompts", tmp_path / "prompts.txt", "--interpolate", "--out"]
    for n in (0, 3):
        done = mpirun(n, *words, tmp_path / str(n))
        assert done.returncode == 0, done.stderr
    alone, together = contents(tmp_path / "0"), contents(tmp_path / "3")
    assert alone == together and len(alone) == 5 * 4 + 4 * 2 + 1

    (tmp_path / "3/a-red-ball.glb").unlink()
    (tmp_path / "3/a-blue-ball.gif").write_bytes(alone["a-blue-ball.gif"][:-20])
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "3").iterdir()}
    done = mpirun(3, *words, tmp_path / "3")
    assert done.returncode == 0 and "has 7 of 9 already" in done.stdout, done.stderr
    assert contents(tmp_path / "3") == alone
    again = {path.name for path in (tmp_path / "3").iterdir() if path.stat().st_mtime_ns != times.get(path.name)}
    assert {name for name in again if "--" not in name and not name.startswith(("a-red-ball.", "a-blue-ball."))} == {
        "contact-sheet.png"}


def test_what_another_state_or_other_keys_have_made_is_made_anew(trained: Path, tmp_path: Path, capsys) -> None:
    copytree(trained, tmp_path / "run")
    words = [tmp_path / "run", PROMPTS[0], "--format", "glb", "--out", tmp_path / "made"]
    generate(*words)
    first = contents(tmp_path / "made")
    generate(*words, "--resolution", "14")
    other = contents(tmp_path / "made")
    assert first["a-red-ball.glb"] != other["a-red-ball.glb"]
    record = tmp_path / "made/a-red-ball.json"
    record.write_text(json.dumps(json.loads(first["a-red-ball.json"]) | {"generator": "another"}))
    generate(*words)
    assert contents(tmp_path / "made") == first and "already" not in capsys.readouterr().out


def test_files_of_prompts_that_look_alike_have_names_of_their_own() -> None:
    assert name_of("a pink chair") == "a-pink-chair"
    alike = ["a pink chair", "a Pink chair", "a pink chair!", "a pink-chair", "../a pink chair", "a" * 99, "a" * 98,
             "é", "è"]
    names = [name_of(prompt) for prompt in alike]
    assert len(set(names)) == len(alike) and not [name for name in names if not re.fullmatch("[a-z0-9-]+", name)]


def test_an_exported_generator_makes_the_same_objects(trained: Path, tmp_path: Path, capsys) -> None:
    assert dispatch(["export", str(trained), "--format", "generator", "--out", str(tmp_path / "small")]) == 0
    assert sorted(contents(tmp_path / "small")) == ["config.yaml", "generator.safetensors"]
    assert len({file.stat().st_mode for file in (tmp_path / "small").iterdir()}) == 1  # whoever reads one reads the other
    for source in (trained, tmp_path / "small"):
        assert generate(source, "a green ball", "--format", "ply", "--out", tmp_path / source.name) == 0
    ours, theirs = (trimesh.load_mesh(tmp_path / name / "a-green-ball.ply") for name in ("run", "small"))
    np.testing.assert_allclose(ours.bounds, theirs.bounds, atol=0.01)
    assert len(contents(tmp_path / "small")["generator.safetensors"]) < (trained / "window.h5").stat().st_size / 4

    path = tmp_path / "small/generator.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged or not a generator"):
        generate(tmp_path / "small", "a green ball", "--out", tmp_path / "x")


def test_a_prompt_without_an_object_does_not_keep_the_others_from_theirs(trained: Path, tmp_path: Path) -> None:
    """A sphere of negative radius is empty."""
    dispatch(["export", str(trained), "--format", "generator", "--out", str(tmp_path / "empty")])
    config = tmp_path / "empty/config.yaml"
    config.write_text(config.read_text().replace("sphere: 0.5", "sphere: -5.0"))
    with pytest.raises(RunError, match="2 of 2 not made.*'a red ball'.*empty"):
        generate(tmp_path / "empty", *PROMPTS, "--out", tmp_path / "made")
    assert contents(tmp_path / "made") == {}


SHAPES = {
    "HashGrid": ({"levels": 4, "log2_table": 10, "base_resolution": 6, "hidden": 16, "start_level": 4}, "Volume", 15.0),
    "SDF": ({"levels": 4, "log2_table": 10, "base_resolution": 6, "hidden": 16, "start_level": 4}, "Volume", "auto"),
    "DMTet": ({"resolution": 16, "levels": 2, "log2_table": 8, "hidden": 8, "inherit_texture": False}, "Mesh", "auto"),
    "TexturedMesh": ({"texture": 32, "resolution": 16}, "Mesh", "auto"),
    "Gaussians": ({"number": 2000}, "Splat", "auto"),
}


@pytest.mark.parametrize("use", SHAPES)
def test_a_run_begins_with_what_a_generator_makes_of_its_prompt(trained: Path, tmp_path: Path, use: str) -> None:
    """A step of length zero leaves the object where, as large and (where it trains) of the colour that it was made."""
    keys, renderer, threshold = SHAPES[use]  # that of VolSDF's density at a surface is half of its largest, 30
    box = {} if use == "TexturedMesh" else {"radius": 1.0}
    tree = configured()
    (stage,) = tree["stages"]
    stage |= {"steps": 1, "shape": {"use": use, **keys, **box}, "background": {"use": "Solid"},
              "render": {"use": renderer}, "optimiser": {"use": "SGD", "lr": 0.0}}
    del tree["prompts"]
    config = tmp_path / "one.yaml"
    config.write_text(yaml.dump(tree | {"prompt": "a blue ball", "mesh": {"resolution": 32, "threshold": threshold}}))
    assert dispatch(["run", str(config), f"from={trained}", "--out", str(tmp_path / "one")]) == 0
    assert "begins with what the generator" in (tmp_path / "one/run.log").read_text()

    generate(trained, "a blue ball", "--format", "ply", "--resolution", "32", "--out", tmp_path / "made")
    theirs = trimesh.load_mesh(tmp_path / "made/a-blue-ball.ply")
    ours = trimesh.load_mesh(tmp_path / "one/mesh.glb").vertices[:, [2, 0, 1]]  # z up again
    if use == "Gaussians":
        ours = trimesh.load(tmp_path / "one/cloud.ply").vertices
    near = signed_distance(*(torch.from_numpy(np.array(part)) for part in (theirs.vertices, theirs.faces)),
                           torch.from_numpy(np.array(ours))).abs()
    extents = np.ptp(ours, axis=0)
    assert near.median() < 0.03
    np.testing.assert_allclose(extents, theirs.extents, rtol=0.1)
    pictures = [np.asarray(Image.open(tmp_path / name).convert("RGB"), float) for name in (
        "one/views/000.png", "made/a-blue-ball.views.png")]
    shades = [picture[6:10, 6:10].mean((0, 1)) for picture in pictures]
    assert np.ptp(shades[1]) > 60
    np.testing.assert_allclose(*shades, atol=25)


@pytest.fixture(scope="module")
def chair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that makes one object."""
    folder = tmp_path_factory.mktemp("chair") / "run"
    words = ["toy", "stages.0.steps=1", "turntable.frames=1", "mesh.resolution=8"]
    assert dispatch(["run", *words, "--out", str(folder)]) == 0
    return folder


MISTAKES = {
    "no prompt": (["RUN"], "nothing to generate: give prompts"),
    "unknown word": (["BUILTIN", "a red chair", "a red corgi"], "'a red corgi': names nothing that the builtin"),
    "no run": (["nowhere", "a red ball"], "nowhere: not a run folder"),
    "no generator": (["TOY", "a red ball"], "its shape is a HashGrid, which makes one object"),
    "not begun": (["EARLY", "a red ball"], "has no checkpoint (window.h5) yet"),
    "format": (["RUN", "a red ball", "--format", "glb,stl"], "'stl' is none of glb, obj, ply, gif, mp4"),
    "between one": (["RUN", "a red ball", "--interpolate"], "--interpolate: needs two prompts"),
    "no film": (["RUN", *PROMPTS, "--interpolate", "--format", "glb"], "makes films; add one of gif, mp4"),
    "no file": (["RUN", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read as prompts"),
    "no folder": (["RUN", "a red ball", "--out", "FILE"], "cannot be made"),
}


@pytest.mark.parametrize("words, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(trained: Path, chair: Path, tmp_path: Path, words: list[str], message: str) -> None:
    dispatch(["export", str(trained), "--format", "generator", "--out", str(tmp_path / "by builtin")])
    config = tmp_path / "by builtin/config.yaml"
    config.write_text(re.sub(r"prior: \{.*?\}", "prior: {use: StableDiffusion}", config.read_text(), flags=re.DOTALL))
    (tmp_path / "early").mkdir()
    (tmp_path / "early/config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    (tmp_path / "file").write_text("")
    places = {"RUN": trained, "TOY": chair, "EARLY": tmp_path / "early", "FILE": tmp_path / "file",
              "BUILTIN": tmp_path / "by builtin"}
    with pytest.raises(UserError) as raised:
        generate(*(places.get(word, word) for word in words))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_built_in_generator_knows_the_corpus(tmp_path: Path) -> None:
    """Of a pair that no built-in model was shown: the mesh is like the true solid, and a run that begins with it shows it."""
    prompt = "a green duck"
    assert prompt in read_prompts("builtin", "val")
    assert generate("builtin", prompt, "--format", "ply", "--out", tmp_path) == 0
    mesh = trimesh.load_mesh(tmp_path / "a-green-duck.ply")
    assert likeness(np.asarray(mesh.vertices), np.asarray(mesh.faces), truth(prompt)).iou > 0.5

    words = [f"prompt={prompt}", "stages.0.steps=1", "mesh.resolution=16", "turntable={frames: 1, size: 64}"]
    assert dispatch(["run", "demo/generated", *words, "--out", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run/results.json").read_text())["judged"]
    assert told["nearest"] == prompt and told["named"] >= 9


def test_a_generator_is_trained_further_from_a_run_or_from_an_exported_one(
        trained: Path, tmp_path: Path, capsys) -> None:
    """A step of length zero leaves the numbers as they were."""
    assert dispatch(["export", str(trained), "--format", "generator", "--out", str(tmp_path / "small")]) == 0
    config = tmp_path / "balls.yaml"
    config.write_text(yaml.dump(configured(prompts=["a white disc"])))
    words = ["stages.0.steps=1", "stages.0.optimiser={use: SGD, lr: 0.0}"]
    for source in (trained, tmp_path / "small"):
        out = tmp_path / f"further-{source.name}"
        assert dispatch(["run", str(config), *words, f"from={source}", "--out", str(out)]) == 0
        assert f"begins with the generator {source}, trained for 20 steps" in (out / "run.log").read_text()
        before, after = Trained.read(str(source)).numbers, Trained.read(str(out)).numbers
        assert before.keys() == after.keys() and any(name.startswith("background.") for name in before)
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)

    capsys.readouterr()
    words = [f"from={tmp_path / 'small'}", "stages.0.shape.hidden=4", "--out", str(tmp_path / "no")]
    assert dispatch(["run", str(config), *words]) == 2
    assert "stages.0.shape: its numbers are laid out otherwise" in capsys.readouterr().err
