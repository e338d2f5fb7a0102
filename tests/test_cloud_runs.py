"""The program on a cloud that changes: the same bits on any number of ranks, in parts, and after kills; what it leaves."""

import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from clouds import STAGE
from conftest import kill
from plyfile import PlyData

from mpiprop.cli.main import dispatch


def kept(folder: Path) -> tuple[bytes, ...]:
    """All that a finished run has saved of its last state."""
    with h5py.File(folder / "window.h5") as file:
        assert file.attrs["complete"] and (folder / "done").exists()
        return tuple(file[f"x/{name}"][()].tobytes()
                     for name in ("flat", "slots/m", "slots/v", "statistics/moves", "statistics/views", "ancestry"))


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cloud") / "cloud.yaml"
    path.write_text(STAGE)
    return path


@pytest.fixture(scope="module")
def alone(setting) -> Path:
    """The folder of the sequential run, in one process that takes both parts of a batch in turn."""
    folder = setting.parent / "alone"
    subprocess.run([sys.executable, "-m", "mpiprop", "run", setting, "window.size=1", "window.shards=2", "--out", folder],
                   check=True, timeout=120, stdout=subprocess.DEVNULL)
    return folder


def begun(n: int, setting: Path, folder: Path, *words: str) -> subprocess.Popen:
    launcher = ["mpirun", "-n", str(n)] if n else []
    return subprocess.Popen([*launcher, sys.executable, "-m", "mpiprop", "run", setting, "window.threshold=0",
                             "window.shards=2", *words, "--out", folder, "--resume"], start_new_session=True,
                            stdout=subprocess.DEVNULL)


def reached(folder: Path, lines: int, process: subprocess.Popen) -> None:
    metrics, end = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= lines):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)


@pytest.mark.mpi
def test_kills_between_changes_and_other_ranks_give_the_bits_of_the_sequential_run(setting, alone, tmp_path):
    """Killed on three ranks with guesses on both sides of a change, stopped in one process, ended on four ranks."""
    folder = tmp_path / "run"
    process = begun(3, setting, folder, "checkpoint.every_s=0", "window.size=7")
    reached(folder, 8, process)
    kill(process)
    process.wait()
    process = begun(0, setting, folder, "window.size=4")
    reached(folder, 15, process)
    process.terminate()
    assert process.wait(60) == 75
    process = begun(4, setting, folder, "window.size=7")
    assert process.wait(120) == 0
    assert kept(folder) == kept(alone)


def test_what_a_run_of_a_cloud_leaves(setting, alone, capsys):
    with h5py.File(alone / "window.h5") as file:
        N = len(file["x/ancestry"])
    vertices = PlyData.read(alone / "cloud.ply")["vertex"]
    assert len(vertices) == N != 60 and (alone / "mesh.glb").exists()
    assert (alone / "turntable.gif").exists() and "points" in (alone / "report.html").read_text()
    assert dispatch(["export", str(alone), "--format", "ply", "--out", str(setting.parent / "again.ply")]) == 0
    assert (setting.parent / "again.ply").read_bytes() == (alone / "cloud.ply").read_bytes()
    assert dispatch(["inspect", str(alone / "window.h5")]) == 0
    assert "/x/ancestry" in capsys.readouterr().out
    assert dispatch(["run", str(setting), f"from={alone}", "stages.0.steps=1", "--out", str(setting.parent / "next")]) == 0
    with h5py.File(setting.parent / "next" / "window.h5") as file:
        assert len(file["x/ancestry"]) == N


@pytest.mark.parametrize("words, told", [
    (["stages.0.material.use=Diffuse"], "stages.0.material: Gaussians have colours of their own"),
    (["stages.0.optimiser={use: 'Adam', between: log, lr: [[0, 0.1], [9, 0]]}"],
     "between: log needs values above 0")])
def test_a_mistake_is_one_line(setting, tmp_path, capfd, words, told):
    assert dispatch(["run", str(setting), *words, "--out", str(tmp_path / "run")]) == 2
    assert told in capfd.readouterr().err
