"""The program as users run it: the same bits on any number of ranks, after kills and signals; every mistake is one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import yaml
from finished import flat

from mpiprop.cli.main import dispatch, main

STEPS = "stages.0.steps=60"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function: /x/flat of the toy run in one process with these overrides, made once."""
    made = {}

    def run(*overrides: str) -> bytes:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("alone") / "run"
            subprocess.run([sys.executable, "-m", "mpiprop", "run", "toy", STEPS, *overrides, "--out", folder], check=True,
                           timeout=120, stdout=subprocess.DEVNULL)
            made[overrides] = flat(folder)
        return made[overrides]
    return run


def test_threshold_zero_is_the_sequential_method(alone):
    assert alone("window.threshold=0") == alone("window.size=1")
    assert alone() != alone("window.size=1")  # the default threshold is a trade


@pytest.mark.mpi
@pytest.mark.parametrize("ranks, overrides", [
    (1, ["window.threshold=0"]), (2, ["window.threshold=0"]), (3, ["window.threshold=0", "window.size=4"]),
    (5, ["window.threshold=0"]), (3, []), (4, ["window.preset=paper"]), (3, ["window.preset=paper", "window.threshold=0"])])
def test_any_number_of_ranks_gives_the_same_bits(mpirun, alone, tmp_path, ranks, overrides):
    done = mpirun(ranks, "run", "toy", STEPS, *overrides, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert flat(tmp_path / "run") == alone(*(["window.size=1"] if "window.threshold=0" in overrides else overrides))


def started(n: int, folder: Path, *overrides: str) -> subprocess.Popen:
    launcher = ["mpirun", "-n", str(n)] if n else []
    return subprocess.Popen([*launcher, sys.executable, "-m", "mpiprop", "run", "toy", STEPS, *overrides, "--out", folder,
                             "--resume"], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def reached(folder: Path, lines: int, process: subprocess.Popen) -> None:
    """Wait until the run has written so many lines of metrics."""
    metrics, end = folder / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") >= lines):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.mpi
def test_killed_at_any_moment_and_resumed_on_other_ranks_gives_the_same_bits(mpirun, alone, tmp_path):
    folder = tmp_path / "run"
    for n, lines in ((3, 3), (2, 8), (0, 12)):
        process = started(n, folder, "window.threshold=0", "checkpoint.every_s=0")
        reached(folder, lines, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["pkill", "-KILL", "-f", str(folder)], check=False)  # ranks outlive a killed mpirun for a moment
    done = mpirun(5, "run", "toy", STEPS, "window.threshold=0", "--out", folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert flat(folder) == alone("window.size=1")
    slides = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [slide["k"] for slide in slides] == list(range(1, len(slides) + 1))  # nothing twice, nothing lost
    assert sum(slide["stride"] for slide in slides) == 60


@pytest.mark.parametrize("name, keys", [("SIGTERM", []), ("SIGUSR1", []), ("SIGTERM", ["window.preset=paper"])])
def test_a_signal_saves_and_exits_75_and_the_rest_is_the_same_above_threshold_zero(alone, tmp_path, name, keys):
    process = started(0, tmp_path / "run", *keys)
    reached(tmp_path / "run", 2, process)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75 and f"{name}: step" in out and "--resume" in out and not err
    assert not (tmp_path / "run" / "done").exists()
    process = started(0, tmp_path / "run", *keys)
    assert process.wait(60) == 0
    assert flat(tmp_path / "run") == alone(*keys)


@pytest.mark.mpi
def test_a_signal_to_one_worker_stops_all(tmp_path):
    process = started(3, tmp_path / "run", "stages.0.steps=5000")
    reached(tmp_path / "run", 2, process)
    ranks = subprocess.run(["pgrep", "-f", f"^{sys.executable} -m mpiprop run toy.*{tmp_path}"], capture_output=True, text=True)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "a signal on another rank" in out and "step 5000 of" not in out


@pytest.mark.parametrize("delay", [0.0, 0.2, 1.0])
def test_a_signal_during_start_up_exits_75(tmp_path, delay):
    process, end = started(0, tmp_path / "run", "stages.0.steps=5000"), time.monotonic() + 60
    state = Path(f"/proc/{process.pid}/status")
    while not int(re.search(r"SigCgt:\s*(\w+)", state.read_text())[1], 16) >> signal.SIGTERM - 1 & 1:
        assert time.monotonic() < end  # Python itself is still starting
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_a_second_run_in_the_same_folder_is_refused(mpirun, tmp_path):
    process = started(0, tmp_path / "run", "stages.0.steps=5000")
    reached(tmp_path / "run", 1, process)
    second = mpirun(0, "run", "toy", "stages.0.steps=5000", "--out", tmp_path / "run", "--resume")
    assert second.returncode == 2 and "another run is at work in it" in second.stderr
    process.kill()


def test_resuming_with_threshold_zero_is_exact_from_there_on(mpirun, tmp_path):
    """A run begun at a loose threshold goes on exactly: its end is that of window.size=1 from the same checkpoint."""
    ends, saved = [], b""
    for change in ("window.threshold=0", "window.size=1"):
        folder = tmp_path / change
        process = started(0, folder, "checkpoint.every_s=0")
        reached(folder, 4, process)
        process.terminate()
        process.wait(60)
        saved = saved or (folder / "window.h5").read_bytes()
        (folder / "window.h5").write_bytes(saved)  # both from the same checkpoint
        assert mpirun(0, "run", "toy", STEPS, change, "--out", folder, "--resume").returncode == 0
        ends.append(flat(folder))
    assert ends[0] == ends[1]


def test_an_image_is_not_taken_where_nothing_reads_it(mpirun, tmp_path):
    done = mpirun(0, "run", "toy", "image=photo.png", cwd=tmp_path)
    assert done.returncode == 2 and "image=photo.png" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.mpi
def test_two_stages_follow_one_another_and_resume_in_the_second(mpirun, tmp_path):
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "toy.yaml").read_text())
    (stage,) = config["stages"]
    config["stages"] = [stage | {"name": "one", "steps": 20}, stage | {"name": "two", "steps": 120}]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    whole = mpirun(0, "run", tmp_path / "two.yaml", "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([sys.executable, "-m", "mpiprop", "run", tmp_path / "two.yaml", "--out", tmp_path / "cut"])
    reached(tmp_path / "cut", 5, process)  # 20 steps take 4 slides
    process.terminate()
    assert process.wait(60) == 75
    with h5py.File(tmp_path / "cut/window.h5") as file:
        assert file.attrs["stage"] == b"two" and not file.attrs["complete"]
    assert mpirun(2, "run", tmp_path / "two.yaml", "--out", tmp_path / "cut", "--resume").returncode == 0
    assert flat(tmp_path / "cut") == flat(tmp_path / "whole")


def test_the_stop_file_works_like_a_signal(tmp_path):
    process = started(0, tmp_path / "run", "stages.0.steps=5000")
    reached(tmp_path / "run", 1, process)
    (tmp_path / "run" / "stop").touch()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "stop: step" in out


def test_results_and_what_comes_after(mpirun, capsys, tmp_path):
    folder = tmp_path / "run"
    late = "stages.0.terms.0.penalties={sparsity: 0.1, opaque: [[30, 0], [60, 1]]}"  # a loss that begins within a window
    done = mpirun(0, "run", "toy", STEPS, late, "preview.every_s=1e6", "--out", folder)
    assert done.returncode == 0 and "done: look at" in done.stdout
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "window.h5", "metrics.jsonl", "run.log", "done", "turntable.gif", "mesh.glb", "report.html",
            "views/000.png", "views/011.png", "previews/toy-000060.png"} <= made

    slides = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for key in ("stage", "tau", "k", "stride", "e", "errors", "seconds", "evaluate_s", "rollout_s", "transport_s",
                "checkpoint_s", "sds"):
        assert all(key in slide for slide in slides)

    again = mpirun(0, "run", "toy", STEPS, late, "--out", folder, "--resume")
    assert again.returncode == 0 and "finished already" in again.stdout
    for form in ("obj", "ply", "gif"):
        assert dispatch(["export", str(folder), "--format", form, "--out", str(tmp_path / f"x.{form}")]) == 0
        assert (tmp_path / f"x.{form}").stat().st_size > 100
    assert dispatch(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert "a red ball" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert dispatch(["inspect", str(folder / "window.h5")]) == 0 and "verified" in capsys.readouterr().out
    resolved = mpirun(0, "run", folder / "config.yaml", "--out", tmp_path / "again")
    assert resolved.returncode == 0 and flat(tmp_path / "again") == flat(folder)


def test_a_hostile_prompt_arrives_unharmed(mpirun, tmp_path):
    prompt = 'a "red" ball: it\'s 100% {odd}\n[1, 2] # null'
    assert mpirun(0, "run", "toy", "stages.0.steps=1", f"prompt={prompt}", cwd=tmp_path).returncode == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert yaml.safe_load((folder / "config.yaml").read_text())["prompt"] == prompt


def test_run_folders_are_named_resumed_and_never_written_over(mpirun, tmp_path):
    for _ in range(2):
        assert mpirun(0, "run", "toy", "stages.0.steps=1", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["toy-a-red-ball-0", "toy-a-red-ball-0.2"]
    (tmp_path / "runs" / "toy-a-red-ball-0.2" / "done").unlink()
    resumed = mpirun(0, "run", "toy", "stages.0.steps=1", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0 and "resumed runs/toy-a-red-ball-0.2/window.h5" in resumed.stdout
    refused = mpirun(0, "run", "toy", "--out", "runs/toy-a-red-ball-0", cwd=tmp_path)
    assert refused.returncode == 2 and "already contains a run" in refused.stderr


MISTAKES = [
    (["run", "tyo"], "no such configuration or file; did you mean 'toy'"),
    (["run", "toy", "sead=3"], "sead: unknown key; did you mean 'seed'"),
    (["run", "toy", "stages.0.steps=many"], "stages.0.steps: needs whole number"),
    (["run", "toy", "stages.0.terms.0.guidance.scael=3"], "scael: unknown key; did you mean 'scale'"),
    (["run", "toy", "stages.0.terms.0.penalties.sparsty=3"], "penalties.sparsty: unknown key; did you mean 'sparsity'"),
    (["run", "toy", "prompt="], "nothing to make"),
    (["run", "toy", "--resmue"], "--resmue: no such option of mpiprop run; did you mean '--resume'"),
    (["rnu", "toy"], "rnu"),
    (["run", "toy", "stages.0.optimiser.lr={geometri: 0.1}"], "no group 'geometri'"),
    (["run", "demo", "stages.0.terms.0.guidance.prior.model=nobody/nothing"], "nobody/nothing"),
    (["export", "nowhere"], "nowhere: not a run folder"),
    (["inspect", "nowhere.h5"], "no such checkpoint"),
    (["evaluate", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize("words, told", MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_2(monkeypatch, capfd, tmp_path, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mpiprop", *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process is pytest's
    assert main() == 2
    err = capfd.readouterr().err
    assert told in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.mpi
def test_a_mistake_on_workers_ends_all_ranks(mpirun, tmp_path):
    done = mpirun(3, "run", "demo", "stages.0.terms.0.guidance.prior.model=nobody/nothing", cwd=tmp_path)
    assert done.returncode == 2 and sum("nobody/nothing" in line for line in done.stderr.splitlines()) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [0, 3])
def test_a_gradient_that_is_not_finite_is_named_and_the_last_state_kept(mpirun, tmp_path, ranks):
    done = mpirun(ranks, "run", "toy", STEPS, "stages.0.terms.0.guidance.scale=[[0, 1.0], [20, 1.0], [21, 1.0e+39]]", "--out",
                  tmp_path / "run")
    assert done.returncode == 1 and "is not finite" in done.stderr and "Traceback" not in done.stderr
    with h5py.File(tmp_path / "run" / "window.h5") as file:
        assert 0 < file.attrs["tau"] <= 21 and not file.attrs["complete"]


def test_a_checkpoint_of_another_configuration_is_refused(mpirun, tmp_path):
    assert mpirun(0, "run", "toy", "stages.0.steps=1", "--out", tmp_path / "run").returncode == 0
    (tmp_path / "run" / "done").unlink()
    done = mpirun(0, "run", "toy", "stages.0.steps=1", "seed=7", "--out", tmp_path / "run", "--resume")
    assert done.returncode == 2 and "another configuration: seed was 0, now 7" in done.stderr
    allowed = mpirun(0, "run", "toy", "stages.0.steps=1", "window.size=3", "--out", tmp_path / "run", "--resume")
    assert allowed.returncode == 0


def test_a_damaged_checkpoint_is_refused_and_left_alone(mpirun, tmp_path):
    assert mpirun(0, "run", "toy", "stages.0.steps=1", "--out", tmp_path / "run").returncode == 0
    (tmp_path / "run" / "done").unlink()
    path = tmp_path / "run" / "window.h5"
    path.write_bytes(damaged := path.read_bytes()[:-100])
    done = mpirun(0, "run", "toy", "stages.0.steps=1", "--out", tmp_path / "run", "--resume")
    assert done.returncode == 2 and "window.h5: damaged" in done.stderr and len(done.stderr.splitlines()) == 1
    assert path.read_bytes() == damaged


@pytest.mark.mpi
def test_a_dead_worker_ends_the_job_and_keeps_the_state(mpirun, alone, tmp_path):
    process = started(3, tmp_path / "run", "checkpoint.every_s=0")
    reached(tmp_path / "run", 3, process)
    ranks = subprocess.run(["pgrep", "-f", f"^{sys.executable} -m mpiprop run toy.*{tmp_path}"], capture_output=True, text=True)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    done = mpirun(2, "run", "toy", STEPS, "--out", tmp_path / "run", "--resume")
    assert done.returncode == 0 and flat(tmp_path / "run") == alone()


def test_help_and_version_everywhere(mpirun, capsys):
    assert mpirun(0, "--version").stdout.startswith("mpiprop ")
    for command in ("export", "evaluate", "report", "inspect"):
        with pytest.raises(SystemExit, match="0"):
            dispatch([command, "--help"])
        assert command in capsys.readouterr().out
    told = mpirun(0, "run", "--help", "all").stdout
    for key in ("window.threshold", "stages.0.steps", "log2_table", "elevation_deg", "scale", "betas"):
        assert key in told
