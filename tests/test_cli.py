"""The command line: help that helps, mistakes that are one line and quick, and nothing heavy loaded for either."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Mpirun

from mpiprop.config import loader
from mpiprop.cli import manual
from mpiprop.cli.main import dispatch, main
from mpiprop.cli.parser import parsers
from mpiprop.config.components import OWN
from mpiprop.core.errors import UserError

MISTAKES = [
    ([], ["run"], "CONFIG is missing: mpiprop run CONFIG ..., a YAML file or one of asd, "),
    ([], ["run", "seed=3"], "CONFIG is missing: mpiprop run CONFIG"),
    ([], ["plan", "--ranks", "3"], "CONFIG is missing: mpiprop plan CONFIG"),
    ([], ["plan", "toy"], "the following arguments are required: --ranks (see mpiprop plan --help)"),
    ([], ["demo"], "demo: no such command; for that configuration: mpiprop run demo"),
    ([], ["exprot"], "exprot: no such command; did you mean 'export'?"),
    ([], ["run", "toy", "--ot", "x"], "--ot: no such option of mpiprop run; did you mean '--out'?"),
    ([], ["run", "toy", "--res"], "--res: no such option of mpiprop run; did you mean '--resume'?"),
    ([], ["run", "toy", "--seed=3"], "--seed=3: keys have no dashes: seed=3"),
    ([], ["run", "toy", "--out"], "argument --out: expected one argument"),
    ([], ["run", "toy", "seed"], "seed: an override reads key=value"),
    ([], ["run", "tyo"], "tyo: no such configuration or file; did you mean 'toy'?"),
    ([], ["run", "toy", "stages.0.render.sampels=3"], "stages.0.render.sampels: unknown key; did you mean 'samples'?"),
    ([], ["run", "--help", "widnow"], "widnow: no configuration, file or topic of that name; did you mean 'window'?"),
    ([], ["run", "toy", "sed=3", "--help"], "sed: unknown key; did you mean 'seed'?"),
    ([], ["export"], "the following arguments are required: RUN (see mpiprop export --help)"),
    ([], ["export", "nowhere"], "nowhere: not a run folder"),
    ([], ["evaluate", "nowhere"], "nowhere: not a run folder"),
    ([], ["generate", "nowhere", "a chair"], "nowhere: not a run folder"),
    ([], ["generate"], "the following arguments are required: RUN"),
    ([], ["report", "nowhere"], "nowhere: no such folder"),
    ([], ["run", "demo/zero123", "image=nowhere.png"], "image=nowhere.png: no such file"),
    ([], ["run", "demo", "from=nowhere"], "from=nowhere: no run folder"),
    (["config.yaml"], ["export", "."], "has no checkpoint (window.h5) yet"),
    (["config.yaml"], ["export", ".", "--format", "glb", "--out", "x.ply"],
     "--out x.ply: needs to end in .glb, as --format says"),
    (["config.yaml"], ["export", ".", "--out", "x.stl"], "--out x.stl: needs to end in .glb, .obj, .ply, .gif, .mp4"),
    (["config.yaml"], ["export", ".", "--out", "no/x.glb"], "no: no such folder"),
    (["config.yaml"], ["export", ".", "--resolution", "1"], "mesh.resolution: needs a number of at least 2"),
    (["config.yaml"], ["export", ".", "--resolution", "0"], "argument --resolution: invalid positive value: '0'"),
    (["config.yaml"], ["export", ".", "--format", "mp4"], "mp4 needs ffmpeg on PATH; install it or take --format gif"),
    ([], ["inspect", "nowhere.h5"], "nowhere.h5: no such checkpoint"),
    (["config.yaml"], ["inspect", "."], "window.h5: no such checkpoint"),
    (["window.h5"], ["inspect", "."], "window.h5: damaged or not a checkpoint"),
]


@pytest.mark.parametrize("files, words, message", MISTAKES, ids=[" ".join(words) for _, words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_2(monkeypatch, capfd, tmp_path, files, words, message) -> None:
    for name in files:
        (tmp_path / name).write_text(loader.resolved(loader.load("toy")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    monkeypatch.setattr("mpiprop.run.preemption.listen", lambda words: None)  # this process is pytest's
    monkeypatch.setattr(sys, "argv", ["mpiprop", *words])
    assert main() == 2
    out, err = capfd.readouterr()
    assert message in err and len(err.splitlines()) == 1 and not out
    assert sorted(path.name for path in tmp_path.iterdir()) == files


QUICK = """
import contextlib, io, sys
from mpiprop.cli.main import dispatch
from mpiprop.core.errors import UserError
for words in {commands}:
    with contextlib.suppress(UserError, SystemExit), contextlib.redirect_stdout(io.StringIO()):
        dispatch(words)
print(*sorted({{"torch", "numpy", "h5py", "mpi4py"}} & set(sys.modules)))
"""


def test_help_and_mistakes_load_nothing_heavy(tmp_path: Path) -> None:
    commands = [["--help"], ["--version"], ["run", "--help"], ["run", "--help", "all"], ["run", "magic3d", "--help"],
                *([name, "--help"] for name in parsers()), *(words for files, words, _ in MISTAKES if not files)]
    commands.remove(["inspect", "nowhere.h5"])  # needs h5py
    loaded = subprocess.check_output([sys.executable, "-c", QUICK.format(commands=commands)], text=True, cwd=tmp_path)
    assert loaded.split() == []


def test_every_command_is_in_the_help_and_explains_itself(capsys) -> None:
    assert dispatch(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"\n  {name} " in page for name in parsers()) and "mpiprop run demo prompt=" in page
    for parser in parsers().values():
        assert parser.description in page
    assert len(page.splitlines()) < 40


def test_the_short_help_of_run_has_examples_that_parse_and_every_configuration_in_a_line() -> None:
    page = manual.short()
    assert len(page.splitlines()) < 72 and max(map(len, page.splitlines())) < 132
    for name in loader.names():
        (line,) = re.findall(rf"(?m)^  {re.escape(name)} .*", page)
        assert line.endswith(".") and manual.sentence(name) in line
    examples = [shlex.split(line.split("  in minutes")[0]) for line in page.splitlines()
                if line.startswith("  mpi") and "--help" not in line]
    assert len(examples) == 3
    for words in examples:
        args = parsers()["run"].read(words[words.index("run") + 1:])
        loader.load(args.config, args.overrides)


def test_the_help_of_a_configuration_shows_the_values_that_it_runs_with() -> None:
    """Every line read back as an override gives the configuration itself."""
    overrides = ["prompt=a \"b\" $c 'd'", "window.size=3", "stages.1.window.size=2",
                 "stages.0.terms.0.guidance.t_max=[[0, 0.5], [9, 0.7]]"]
    run, page = loader.load("magic3d", overrides), manual.of("magic3d", overrides)
    told = [shlex.split(line.strip().split("  ")[0])[0] for line in page.splitlines() if re.match(r"  '?[\w.]+=", line)]
    uses = [word for word in told if ".use=" in word]
    assert len(uses) == 2 * 5 + 2 * (2 + 2) and len(told) > 150
    words = [*uses, *(word for word in told if word not in uses)]
    assert loader.load("magic3d", [*overrides, *words]) == run
    bare = loader.load("magic3d", words)
    assert bare == run


def test_the_manual_has_every_key_of_a_run_and_of_every_component() -> None:
    page = manual.complete()
    assert "  window.size: whole number (default 7)\n      steps evaluated side by side" in page
    assert "stages.0.terms.0.penalties: {name: " in page
    assert all(f'use: "{use}"' in page for uses in OWN.values() for use in uses)
    lines = page.splitlines()
    bare = [line for line, after in zip(lines, [*lines[1:], ""])
            if (line.endswith("(required)") or " (default " in line) and not after.startswith("      ")]
    assert not bare, "keys without a line of explanation"


@pytest.mark.parametrize("word, part", [
    ("window", "  window.decay: number (default 0.9)"), ("run", "  seed: whole number (default 0)"),
    ("stages", "  stages.0.terms.0.weight: "), ("shape", 'use: "DMTet"'),
    ("HashGrid", 'use: "HashGrid"'),
    ("HashGrid", "  levels: whole number (default 16)")])
def test_a_topic_is_a_section_of_the_manual(word: str, part: str) -> None:
    page = manual.answer([word])
    assert part in page and len(page) < len(manual.complete()) / 2
    assert all(line in manual.complete().splitlines() for line in page.splitlines()[2:])


def test_without_a_command_the_first_line_says_what_is_run_and_where_help_is(launch) -> None:
    process = launch(0, env={"PYTHONUNBUFFERED": "1"})
    first = process.stdout.readline()
    assert "`mpiprop run demo`" in first and "mpiprop --help" in first


@pytest.mark.mpi
def test_ranks_say_a_mistake_and_help_once(mpirun: Mpirun, tmp_path: Path) -> None:
    done = mpirun(2, "run", "toy", "stages.0.shape.levles=3", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("unknown key; did you mean 'levels'?") == 1
    assert mpirun(2, "--help", cwd=tmp_path).stdout.count("usage: mpiprop COMMAND") == 1


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m mpiprop run --help all | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "keys of a run:\n0\n" and not done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert dispatch(["run", "toy", "stages.0.steps=20", "turntable.frames=2", "mesh.resolution=8", "mesh.texture=32", "--out",
                     str(folder)]) == 0
    return folder


def test_inspect_takes_a_folder_and_explains_its_letters(finished: Path, capsys) -> None:
    assert dispatch(["inspect", str(finished)]) == 0
    of_folder = capsys.readouterr().out
    assert dispatch(["inspect", str(finished / "window.h5")]) == 0
    assert capsys.readouterr().out == of_folder
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert "tau        20: optimiser steps done, of 20 in this stage" in of_folder
    assert f"k          {last['k']}: iterations of the window that it took, {20 / last['k']:.2f} steps each" in of_folder
    assert "e          " in of_folder and "complete   yes" in of_folder


def test_export_goes_by_the_ending_of_out_and_tells_what_is_in_the_file(finished: Path, tmp_path: Path, capsys) -> None:
    assert dispatch(["export", str(finished), "--out", str(tmp_path / "a.obj")]) == 0
    assert "texture 32 x 32" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".mtl", ".obj", ".png"]
    assert dispatch(["export", str(finished), "--format", "ply", "--resolution", "12"]) == 0
    said = capsys.readouterr().out
    assert "texture" not in said and said.splitlines()[-1] == str(finished / "mesh.ply")
    assert dispatch(["export", str(finished), "--format", "gif", "--resolution", "17"]) == 0
    from PIL import Image
    assert Image.open(finished / "turntable.gif").size == (17, 17)


def test_pictures_of_the_corpus_say_where_they_are(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tools.corpus", "chair", "orange", tmp_path / "chair.png", "--size", "32"],
                          capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.startswith(f"{tmp_path / 'chair.png'}: an orange chair, 32 x 32 pixels")
    page = subprocess.check_output([sys.executable, "-m", "tools.corpus", "--help"], text=True, cwd=ROOT, timeout=60)
    assert "degrees, 0 is the front (default: 0)" in " ".join(page.split())


def test_an_unknown_key_of_help_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no configuration, file or topic"):
        manual.answer(["nonsense!"])
