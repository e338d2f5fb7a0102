"""The job files on a Slurm cluster of three nodes: interrupted in every way at any moment, they end with the same bits.

MPIPROP_SLURM_ROUNDS (default 1): how often a run is interrupted in each way.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import yaml
from finished import flat

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parent.parent
SANDBOX = ROOT / "tests/sandbox/slurm.sh"
ROUNDS = int(os.environ.get("MPIPROP_SLURM_ROUNDS", 1))
SMALL = ["turntable.frames=1", "turntable.size=16", "mesh.resolution=8"]
NASTY = "it's a \"red\"  ball; $HOME `x` \\n *\n& an é"


class Cluster:
    """The sandbox, and a folder to submit from."""

    def __init__(self, sandbox: Path, folder: Path) -> None:
        self.folder, self.ball = folder, f"a ball named {sandbox.name}"
        self.env = os.environ | {"SANDBOX": str(sandbox), "SLURM_CONF": str(sandbox / "slurm.conf"), "MPIPROP": str(ROOT),
                                 "VENV": sys.prefix, "MPIPROP_CUDA_AWARE": "0", "KILLWAIT": "5"}

    def call(self, *words: object, **env: str) -> str:
        done = subprocess.run([*map(str, words)], env=self.env | env, cwd=self.folder, timeout=60, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *words: object, **env: str) -> str:
        """The number of a job of these words for sbatch."""
        return self.call("sbatch", "--parsable", "--output=%x-%A-%a.out", *words, **env)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return self.tasks(number)[0]

    def tasks(self, number: str) -> list[dict[str, str]]:
        """What Slurm knows of each task of an array."""
        told = re.split(r"(?m)^(?=JobId=)", self.call("scontrol", "-o", "show", "job", number))  # a prompt may have newlines
        return [dict(word.partition("=")[::2] for word in task.split()) for task in told if task]

    def said(self, number: str) -> str:
        return "".join(file.read_text() for file in sorted(self.folder.glob(f"*-{number}-*.out")))

    def reaches(self, condition: Callable[[], bool], number: str, timeout: float = 180) -> None:
        """Wait for the condition, or fail with what the job had said."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"{self.job(number)}\n{self.said(number)}"
            time.sleep(0.2)

    def ends(self, number: str, state: str = "COMPLETED") -> None:
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.reaches(lambda: all(job["JobState"] in over for job in self.tasks(number)), number)
        assert {job["JobState"] for job in self.tasks(number)} == {state}, self.said(number)


@pytest.fixture
def cluster(running, tmp_path):
    return Cluster(running, tmp_path)


@pytest.fixture(scope="module")
def running():
    """The folder of a sandbox with three nodes."""
    with tempfile.TemporaryDirectory(prefix="mpiprop-", dir="/tmp") as folder:  # munged's parents are open to all
        cluster = Cluster(Path(folder), ROOT)
        try:
            cluster.call(SANDBOX, "start", 3)
            yield Path(folder)
        finally:
            cluster.call(SANDBOX, "stop")


def requeue(cluster: Cluster, number: str) -> None:
    cluster.call("scontrol", "requeue", number)


def notice(cluster: Cluster, number: str) -> None:
    """What the batch shell gets some time before the time limit."""
    cluster.call("scancel", "--batch", "--signal=USR1", number)


def preempt(cluster: Cluster, number: str) -> None:
    cluster.ends(cluster.submit("--partition=high", "--nodes=3", "--exclusive", "--wrap", "sleep 1"))


def kill_a_rank(cluster: Cluster, number: str) -> None:
    ranks = subprocess.run(["pgrep", "-f", f"^[^ ]*python -m mpiprop run toy prompt={cluster.ball}"], text=True,
                           stdout=subprocess.PIPE)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["srun"] + ["mpirun"] * (ROUNDS > 1))
def test_interrupted_in_every_way_the_bits_are_the_same(cluster, launcher):
    steps = 2500 * ROUNDS
    number = cluster.submit("--ntasks=3", "--nodes=3", ROOT / "jobs/text3d.slurm", cluster.ball, "toy",
                            f"stages.0.steps={steps}", "checkpoint.every_s=0.5", *SMALL, LAUNCHER=launcher)
    ways, moment = [requeue, notice, preempt, kill_a_rank] * ROUNDS, random.Random(steps)
    for restarts, way in enumerate(ways, 1):
        def slides() -> int:
            return sum(path.read_text().count("\n") for path in cluster.folder.glob("runs/*/metrics.jsonl"))
        cluster.reaches(lambda: cluster.job(number)["JobState"] == "RUNNING", number)
        before = slides()
        if restarts % 3 or way is kill_a_rank:  # else while it starts
            cluster.reaches(lambda: slides() > before, number)
        time.sleep(moment.uniform(0, 1))
        way(cluster, number)
        cluster.reaches(lambda: int(cluster.job(number)["Restarts"]) == restarts, number)
    cluster.ends(number)
    (run,) = cluster.folder.glob("runs/*")
    subprocess.run([sys.executable, "-m", "mpiprop", "run", run / "config.yaml", "--out", cluster.folder / "alone"], check=True,
                   timeout=300)
    assert flat(run) == flat(cluster.folder / "alone")


def test_a_generator_of_many_prompts_is_trained_on_two_nodes_and_goes_on_after_a_requeue(cluster):
    (cluster.folder / "prompts.txt").write_text("a red ball\na blue ball\na green ball\n")
    words = ["prompts=prompts.txt", "stages.0.shape={use: HyperINGP, text_width: 3, levels: 2, log2_table: 8}", *SMALL,
             "stages.0.render={use: VolSDF, proposal: 8, importance: 4}", "stages.0.steps=600", "checkpoint.every_s=0.5"]
    number = cluster.submit("--ntasks=3", "--nodes=2", ROOT / "jobs/amortized.slurm", "toy", *words)
    cluster.reaches(lambda: any(cluster.folder.glob("runs/*/window.h5")), number)
    requeue(cluster, number)
    cluster.ends(number)
    assert "attempt 2" in cluster.said(number)
    (run,) = cluster.folder.glob("runs/*")
    subprocess.run([sys.executable, "-m", "mpiprop", "run", "toy", *words, "--out", "alone"], check=True, timeout=300,
                   cwd=cluster.folder)
    assert flat(run) == flat(cluster.folder / "alone") and (run / "embeddings").is_dir()
    number = cluster.submit("--ntasks=3", "--nodes=2", ROOT / "jobs/generate.slurm", run, "--prompts", "prompts.txt")
    cluster.ends(number)
    assert {file.name for file in (run / "generated").glob("*.glb")} == {f"a-{colour}-ball.glb" for colour in (
        "red", "blue", "green")}


def test_an_array_makes_each_prompt_of_a_file_once(cluster):
    prompts = cluster.folder / "prompts.json"
    prompts.write_text(json.dumps([NASTY, "a blue ball"]))
    words = ["toy", "stages.0.steps=2", *SMALL]
    array = ["--array=1-2", "--ntasks=2", "--nodes=1", ROOT / "jobs/text3d.slurm", "--prompts", prompts, *words]
    cluster.ends(cluster.submit(*array))
    runs = {yaml.safe_load((run / "config.yaml").read_text())["prompt"]: run for run in cluster.folder.glob("runs/*")}
    assert runs.keys() == {NASTY, "a blue ball"}
    made = {run: (run / "done").stat().st_mtime_ns for run in runs.values()}
    single = ["--ntasks=2", "--nodes=1", ROOT / "jobs/text3d.slurm"]
    again = [cluster.submit(*array), cluster.submit(*single, NASTY, *words), cluster.submit(*single, *words, PROMPT=NASTY)]
    for number in again:
        cluster.ends(number)
    assert [cluster.said(number).count("done already") for number in again] == [2, 1, 1]
    assert {run: (run / "done").stat().st_mtime_ns for run in cluster.folder.glob("runs/*")} == made
    number = cluster.submit(ROOT / "jobs/evaluate.slurm", *made)
    cluster.ends(number)
    (result,) = cluster.folder.glob("runs/evaluate-*.json")
    assert {score["prompt"] for score in json.loads(result.read_text())["objects"]} == runs.keys()


def test_a_mistake_or_a_cancelled_job_is_not_tried_again(cluster):
    mistake = cluster.submit("--ntasks=1", ROOT / "jobs/text3d.slurm", "a ball", "nosuch")
    cancelled = cluster.submit("--ntasks=2", "--nodes=1", ROOT / "jobs/text3d.slurm", "a ball", "toy", "stages.0.steps=9999")
    cluster.reaches(lambda: any(cluster.folder.glob("runs/toy-*/metrics.jsonl")), cancelled)
    cluster.call("scancel", cancelled)
    cluster.ends(cancelled, "CANCELLED")
    cluster.ends(mistake, "FAILED")
    assert cluster.job(mistake)["ExitCode"] == "2:0" and "nosuch: no such configuration" in cluster.said(mistake)
    assert cluster.job(mistake)["Restarts"] == cluster.job(cancelled)["Restarts"] == "0"
    (run,) = cluster.folder.glob("runs/toy-*")
    with h5py.File(run / "window.h5") as file:
        assert file.attrs["tau"] > 0  # saved on the way out
