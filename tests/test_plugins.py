"""The plug-ins that mpiprop/README.md shows, built and installed; and that nothing else a configuration names is imported."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, Launch, Mpirun, kill
from finished import flat
from PIL import Image

from mpiprop.cli.main import main
from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.run import checkpoint

TOY = ["toy", "stages.0.steps=20", "turntable.frames=1", "mesh.resolution=8"]
HOSTILE = "stages.0.terms.0.guidance.use"
FILES = ("pyproject.toml", "mycompany_csd.py", "mycompany_ball.py", "mycompany_tint.py", "mycompany_paint.py")
CONFIGS = ("mycompany.yaml", "mycompany-prompts.yaml")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of the documentation is installed, its configuration beside it."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    text = (ROOT / "mpiprop/README.md").read_text()
    for name in (*FILES, *CONFIGS):
        (source / name).write_text(re.search(rf"`{name}`:\n\n```\w+\n(.*?)```", text, re.DOTALL)[1])
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--target", site, source], check=True, timeout=120)
    for name in CONFIGS:
        (source / name).rename(site / name)
        assert len((site / name).read_text().splitlines()) <= 40
    return site


def beside(site: Path) -> dict[str, str]:
    """The environment of a program that finds what is installed in `site`."""
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ["PYTHONPATH"]])}


def colour(picture: Path, x: float, y: float, frame: int = 0) -> str:
    """The strongest channel at a place in a picture, as a share of its width and height."""
    film = Image.open(picture)
    film.seek(frame)
    image = film.convert("RGB")
    pixel = image.getpixel((int(x * image.width), int(y * image.height)))
    assert max(pixel) > 1.5 * sorted(pixel)[1]
    return ("red", "green", "blue")[pixel.index(max(pixel))]


@pytest.mark.mpi
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_package_of_the_documentation_gives_the_same_bits_on_ranks_killed_and_resumed(
        launch: Launch, mpirun: Mpirun, site: Path, tmp_path: Path, name: str, shards: int) -> None:
    words = [site / name, "window.threshold=0", f"window.shards={shards}", "checkpoint.every_s=0"]
    env, metrics = beside(site), tmp_path / "killed/metrics.jsonl"
    alone = mpirun(0, "run", *words, "--out", tmp_path / "alone", env=env)
    assert alone.returncode == 0 and "csd" in (tmp_path / "alone/metrics.jsonl").read_text(), alone.stderr
    if name == "mycompany.yaml":
        assert colour(tmp_path / "alone/views/000.png", 0.5, 0.5) == "green"
    else:  # a row for each prompt
        preview = sorted((tmp_path / "alone/previews").glob("*.png"))[-1]
        assert [colour(preview, 0.125, y) for y in (0.25, 0.75)] == ["red", "blue"]
        made = mpirun(0, "generate", tmp_path / "alone", "red", "blue", "--interpolate", "--out", tmp_path / "made", env=env)
        assert made.returncode == 0, made.stderr
        assert [colour(tmp_path / f"made/{name}.views.png", 0.125, 0.5) for name in ("red", "blue")] == ["red", "blue"]
        assert [colour(tmp_path / "made/red--blue.gif", 0.5, 0.5, frame) for frame in (0, 2)] == ["red", "blue"]

    killed = launch(3, "run", *words, "--out", tmp_path / "killed", env=env)
    while killed.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.02)
    assert killed.poll() is None, killed.communicate()
    kill(killed)
    assert not (tmp_path / "killed/done").exists()
    again = mpirun(3, "run", *words, "--out", tmp_path / "killed", "--resume", env=env)
    assert again.returncode == 0 and "resumed" in again.stdout, again.stderr
    assert flat(tmp_path / "alone") == flat(tmp_path / "killed")


def test_a_plug_in_is_explained_and_missed(mpirun: Mpirun, site: Path, tmp_path: Path) -> None:
    words = [*TOY, "stages.0.terms.0.guidance.use=mycompany.csd", "--out", tmp_path / "run"]
    assert mpirun(0, "run", *words, env=beside(site)).returncode == 0
    told = mpirun(0, "run", "--help", "mycompany.csd", env=beside(site)).stdout
    assert "scale: number | [[step, number], ...] (default 1.0)\n      factor of the difference" in told
    assert "t_max: number" in told  # of the class that it derives from

    gone = mpirun(0, "run", *words, "--resume")
    assert gone.returncode == 2 and "'mycompany.csd' is not a component of mpiprop or of an installed plug-in" in gone.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after some steps."""
    from mpiprop.cli.main import dispatch
    folder = tmp_path_factory.mktemp("made") / "run"
    assert dispatch(["run", *TOY, "--out", str(folder)]) == 0
    return folder


COMMANDS = {
    "in a file": lambda run, bad: ["run", bad],
    "in a file, checked": lambda run, bad: ["run", bad, "--check"],
    "in an override": lambda run, bad: ["run", *TOY, f"{HOSTILE}=hostile:Thing"],
    "planned": lambda run, bad: ["plan", bad, "--ranks", "4"],
    "explained": lambda run, bad: ["run", bad, "--help"],
    "in a checkpoint, from": lambda run, bad: ["run", *TOY, "stages.0.name=next", f"from={run}"],
    "in a checkpoint, resumed": lambda run, bad: ["run", *TOY, "--out", run, "--resume"],
    "in a run folder, exported": lambda run, bad: ["export", run],
    "in a run folder, evaluated": lambda run, bad: ["evaluate", run],
    "in a run folder, reported": lambda run, bad: ["report", run],
    "in a run folder, measured": lambda run, bad: ["plan", "toy", "--ranks", "4", "--measured", run],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_hostile_configuration_leaves_no_trace(monkeypatch, capfd, tmp_path, made, command) -> None:
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Thing: pass\n")
    run, bad = tmp_path / "run", tmp_path / "bad.yaml"
    text = (made / "config.yaml").read_text().replace("SDS", "hostile:Thing")
    assert "hostile:Thing" in text
    for folder in (run, run / "views"):
        folder.mkdir()
    for name in ("metrics.jsonl", "views/000.png"):
        (run / name).write_bytes((made / name).read_bytes())
    (run / "config.yaml").write_text(text)
    bad.write_text(text)
    checkpoint.save(run / "window.h5", replace(checkpoint.load(made / "window.h5"), config=text))

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("mpiprop.run.preemption.listen", lambda words: None)  # this process is pytest's
    monkeypatch.setattr(sys, "argv", ["mpiprop", *map(str, command(run, bad))])
    code, err = main(), capfd.readouterr().err
    assert "hostile" not in sys.modules and not (tmp_path / "trace").exists()
    if code:  # a report reads the configuration as text
        assert code == 2 and len(err.strip().splitlines()) == 1
        assert "is not a component of mpiprop or of an installed plug-in" in err or "is of another configuration" in err, err


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [touch trace]", "!!python/name:os.system", "!include x"])
def test_tags_of_yaml_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(f"prompt: {text}\nstages: []\n")
    with pytest.raises(UserError, match="not YAML"):
        loader.load(str(tmp_path / "bad.yaml"))
