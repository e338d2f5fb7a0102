"""Before the first step: what a run needs is checked, for all of its stages, and its plan is shown."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from finished import measured

from mpiprop.config import loader
from mpiprop.cli.main import dispatch
from mpiprop.run.checkpoint import load
from mpiprop.core.errors import UserError
from mpiprop.run.preflight import memory, needs
from mpiprop.run.preflight.memory import Need, Pool, judge, size
from mpiprop.run.preflight.stages import survey
from mpiprop.run.stage import Stage

SHORT = ["stages.0.steps=3", "turntable.frames=2", "turntable.size=16", "mesh.resolution=8"]
CPU = torch.device("cpu")


def test_a_check_shows_the_plan_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert dispatch(["run", "demo/magic3d", "--check"]) == 0
    out = capsys.readouterr().out
    run, (_, coarse, refine, *rest) = loader.load("demo/magic3d"), out.splitlines()
    for i, line in enumerate((coarse, refine)):
        layout = Stage(run, i, CPU).scene.layout
        assert line.split()[:4] == [run.stages[i].name, str(run.stages[i].steps), f"{layout.D:,}", f"{layout.L - layout.D:,}"]
        assert "StableDiffusion" in line
    assert [line.split()[0] for line in rest] == ["ranks", "memory", "checkpoint", "results"]
    assert not list(tmp_path.iterdir())


def test_a_check_of_a_run_that_is_there_leaves_it_alone(mpirun, tmp_path):
    done = mpirun(0, "run", "toy", *SHORT, "--out", tmp_path / "a")
    again = mpirun(0, "run", "toy", *SHORT, "--check", "--out", tmp_path / "a", "--resume")
    assert done.returncode == again.returncode == 0 and "finished already" in again.stdout
    (tmp_path / "a" / "done").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    again = mpirun(0, "run", "toy", *SHORT, "--check", "--out", tmp_path / "a", "--resume")
    assert again.returncode == 0 and "trained" in again.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_a_checkpoint_is_as_large_as_planned(mpirun, tmp_path):
    """The window of a finished run is empty; of one that goes on the guesses are saved as well."""
    words = [*SHORT, "stages.0.shape.log2_table=14", "stages.0.shape.base_resolution=16", "stages.0.shape.levels=8"]
    run = loader.load("toy", [*words, "stages.0.steps=40"])
    (found,) = survey(run, 0, CPU, None, False, None)
    assert mpirun(0, "run", "toy", *words, "--out", tmp_path / "run").returncode == 0
    window = load(tmp_path / "run" / "window.h5").window
    stored = found.work.L + 2 * found.work.D
    assert (tmp_path / "run" / "window.h5").stat().st_size == pytest.approx(4 * stored, rel=0.05)
    assert needs.checkpoint(found.work, run.stages[0].window) == 4 * (stored + 7 * found.work.L) and not window.guess


@pytest.mark.mpi
def test_all_ranks_are_in_the_plan(mpirun, tmp_path):
    done = mpirun(3, "run", "toy", "window.size=1", "--check", cwd=tmp_path)
    assert done.returncode == 0 and "ranks       3 on cpu" in done.stdout and "on each other" in done.stdout, done.stderr
    assert "3 ranks, of which the windows keep 2 busy" in done.stdout and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A configuration whose third stage has a model without files."""
    tree = loader.read("demo/magic3d")
    third = yaml.safe_load(yaml.safe_dump(tree["stages"][1]))
    third["name"], third["terms"][0]["guidance"]["prior"]["model"] = "third", "empty"
    folder = tmp_path_factory.mktemp("three")
    (folder / "empty").mkdir()
    (folder / "three.yaml").write_text(yaml.safe_dump({**tree, "stages": [*tree["stages"], third]}))
    return folder


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "words", "told"), [
    (0, ["three.yaml"], "stages.2.terms.0.guidance.prior: model 'empty'"),
    (3, ["three.yaml"], "stages.2.terms.0.guidance.prior: model 'empty'"),
    (3, ["demo", "mesh.resolution=100000"], "lower mesh.resolution")])
def test_a_mistake_in_a_later_stage_is_told_before_any_step(mpirun, three, ranks, words, told):
    done = mpirun(ranks, "run", *words, cwd=three)
    assert done.returncode == 2 and sum(told in line for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr and not (three / "runs").exists() and "T/K" not in done.stdout


def test_words_that_the_model_does_not_know(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert dispatch(["run", "demo", "--check"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert dispatch(["run", "demo", "prompt=a DSLR photo of a green mushroom", "--check"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "does not know" in line]
    assert 'does not know "dslr", "photo"; leave out' in line
    assert dispatch(["run", "demo", "prompt=a corgi", "unknown_words=warn", "--check"]) == 0
    assert "expect a poor result" in capsys.readouterr().out
    assert dispatch(["run", "toy", "prompt=a red corgi", "--check"]) == 0  # its prior makes a ball of whatever it is asked
    assert dispatch(["run", "demo", "stages.0.terms.0.guidance.prompts.negative=a blurry mug", "--check"]) == 0
    assert '"blurry"' in capsys.readouterr().out


def test_stages_follow_one_another_or_the_run_that_is_named(mpirun, tmp_path):
    """`from=RUN` is looked at as a stage before the first would be."""
    assert mpirun(0, "run", "toy", *SHORT, "--out", tmp_path / "run").returncode == 0
    found = load(tmp_path / "run" / "window.h5")
    run = loader.load("toy", ["stages.0.shape.levels=5", f"from={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="stages.0.shape: this stage's shape, a HashGrid, is laid out otherwise"):
        survey(run, 0, CPU, None, False, found)
    assert survey(loader.load("toy"), 0, CPU, None, False, found)


def test_a_schedule_is_looked_at_where_it_changes():
    """The batch that cannot be divided comes at step 60 alone."""
    keys = ["stages.0.terms.0.views.group=2", "stages.0.terms.0.views.batch=[[0, 2], [60, 3], [70, 4]]"]
    with pytest.raises(UserError, match="stages.0.terms.0.views: a batch of 3 at step 60"):
        survey(loader.load("toy", keys), 0, CPU, None, False, None)


# ---- memory ----

def need(known: float, guessed: float = 0.0) -> Need:
    return Need({"a": known}, {"b": guessed})


def test_ranks_share_the_memory_of_their_host():
    one, other = {"host": Pool("one", 100)}, {"host": Pool("other", 100)}
    assert judge([one, one, other], [{"host": need(60)}, {"host": need(30)}, {"host": need(70)}]) == ([], [
        "memory of one: 2 ranks may take 90 B (an estimate), and 100 B are free; if that is not enough, lower a"])
    impossible, _ = judge([one, one, other], [{"host": need(60)}, {"host": need(50)}, {"host": need(101)}])
    assert len(impossible) == 2 and "2 ranks would take at least 110 B, and 100 B are free; lower a" in impossible[0]
    assert judge([one], [{"host": need(1, 290)}])[1] and judge([one], [{"host": need(1, 310)}])[0]
    gpu = {"host": Pool("one", 1000), "gpu": Pool("GPU", 10)}
    assert "GPU" in judge([gpu], [{"host": need(20), "gpu": need(20)}])[0][0]


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_counts(tmp_path, version):
    """A group inside another: the inner one has no limit, the outer one leaves less than the host has."""
    meminfo, own = tmp_path / "meminfo", tmp_path / "own"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:  5000 kB\n")
    own.write_text("4:memory:/job/step\n0::/\n" if version == 1 else "0::/job/step\n")
    limit, used, cache = (("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file") if version == 1
                          else ("memory.max", "memory.current", "inactive_file"))
    base = tmp_path / "memory" if version == 1 else tmp_path
    for folder, most in (("job", 4000), ("job/step", 9223372036854771712 if version == 1 else "max")):
        (base / folder).mkdir(parents=True)
        (base / folder / limit).write_text(f"{most}\n")
        (base / folder / used).write_text("2500\n")
        (base / folder / "memory.stat").write_text(f"active 3\n{cache} 500\n")
    assert memory.host(tmp_path, meminfo, own).free == 4000 - 2500 + 500
    own.write_text("")
    assert memory.host(tmp_path, meminfo, own).free == 5000 * 1024


def test_what_does_not_fit_raises_while_memory_is_bounded():
    with memory.bounded("stages.1", 100e6):
        torch.zeros(1_000_000)
    with pytest.raises(UserError, match="stages.1: does not fit into the memory here"), memory.bounded("stages.1", 100e6):
        torch.zeros(10_000_000_000)  # more than what the process keeps of memory that it has freed
    with pytest.raises(RuntimeError, match="another"), memory.bounded("stages.1", 100e6):
        raise RuntimeError("another")
    with memory.bounded("stages.1", None):
        torch.zeros(100_000_000)


def test_sizes_read_like_sizes():
    assert [size(x) for x in (0, 999, 1000, 999_600, 3.14e9, 4.7e13)] == ["0 B", "999 B", "1 kB", "1 MB", "3.14 GB", "47 TB"]


@pytest.mark.parametrize("name", ["demo", "demo/dreamgaussian"])
def test_estimates_are_near_what_is_measured(name, tmp_path):
    """The peak of a short run in one process, its results included, is the estimate within 40 %; figures in tools/README.md."""
    words = ["run", name, "stages.0.steps=20", *(["stages.1.steps=5"] if "/" in name else [])]
    done, peak = measured(*words, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = re.search(r"about ([\d.]+) (\w)B on rank 0", done.stdout)
    estimate = float(told[1]) * {"M": 1e6, "G": 1e9}[told[2]]
    assert estimate == pytest.approx(peak, rel=0.4)


# ---- the disk ----

def test_a_disk_that_is_too_small_is_told_before_the_first_step(tmp_path):
    """A file system of 4 MB, in a mount namespace of its own."""
    inside = f"mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec python -m mpiprop run demo --out {tmp_path}/run"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(r"run: the disk has 4.\d* MB left, the run needs [\d.]+ MB \(two checkpoints of 5\.\d+ MB", done.stderr)
