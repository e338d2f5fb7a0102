"""A step's batch in parts, by the ranks of a group: the same gradient to rounding, the same bits for the same parts; and ranks
that die or hang."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from finished import flat

from mpiprop.config import loader
from mpiprop.core.theta import Theta
from mpiprop.run.stage import Stage
from mpiprop.transport.sharded import Sharded

TOY = ("run", "toy", "stages.0.steps=40", "turntable.frames=2", "mesh.resolution=16", "preview.every_s=0")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> bytes:
    """/x/flat of one process that takes the two parts in turn, one step after the other."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run([sys.executable, "-m", "mpiprop", *TOY, "window.shards=2", "window.size=1", "--out", folder], check=True,
                   stdout=subprocess.DEVNULL, timeout=120)
    return flat(folder)


@pytest.mark.parametrize("name, parts", [("toy", 2), ("toy", 3), ("demo", 2), ("demo", 3), ("demo", 9)])
def test_parts_add_up_to_the_batch(name, parts):
    """Gradient and losses, with every penalty on, for even and uneven parts and for more parts than views."""
    stage = Stage(loader.load(name, ["prompt=a green mushroom"]), 0, torch.device("cpu"))
    unit = stage.unit(stage.embeddings())
    noise = torch.randn(stage.scene.layout.L, generator=torch.Generator().manual_seed(1))
    theta = Theta(stage.scene.theta().flat + 0.01 * noise, stage.scene.layout)
    for tau in (0, stage.T - 1):
        whole = unit(theta, tau)
        grad, told = whole.grad.clone(), dict(whole.scalars)
        shared = Sharded(unit, parts)(theta, tau)
        assert torch.equal(shared.grad, Sharded(unit, parts)(theta, tau).grad)
        assert (shared.grad - grad).norm() < 1e-4 * grad.norm()
        told.pop("grad_norm"), (mine := dict(shared.scalars)).pop("grad_norm")  # a norm of parts does not add up
        assert mine == pytest.approx(told, rel=1e-4)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 3, 5, 6])
def test_groups_of_any_size_give_the_bits_of_one_process(mpirun, alone, tmp_path, ranks):
    """One rank for both parts; one group; two groups; two groups and a rank alone."""
    done = mpirun(ranks, *TOY, "window.shards=2", "window.threshold=0", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert flat(tmp_path / "run") == alone


class Job:
    """A run under mpirun whose ranks can be reached by signals."""

    def __init__(self, ranks: int, folder: Path, *overrides: str, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "mpiprop", *TOY, "checkpoint.every_s=0", *overrides, "--out", str(folder), "--resume"]
        self.process = subprocess.Popen(["mpirun", *options, "-n", str(ranks), *command], start_new_session=True, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        metrics, end = folder / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < end and self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def signal(self, rank: int, number: int) -> None:
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = environ.read_bytes().split(b"\0")
                mine = str(self.folder).encode() in environ.with_name("cmdline").read_bytes()
            except OSError:
                continue
            if mine and f"PMIX_RANK={rank}".encode() in words:
                os.kill(int(environ.parent.name), number)

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=120)
        return self.process.returncode, out


@pytest.mark.mpi
def test_a_rank_that_hangs_ends_the_job_in_time_for_another_try(mpirun, alone, tmp_path):
    job = Job(4, tmp_path / "run", "window.shards=2", "window.threshold=0", "patience_s=2", "stages.0.steps=40")
    job.signal(3, signal.SIGSTOP)
    code, out = job.end()
    assert code == 75 and "rank 3 on" in out and "has not answered for" in out
    assert not (tmp_path / "run" / "done").exists()
    done = mpirun(2, *TOY, "window.shards=2", "window.threshold=0", "--out", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert flat(tmp_path / "run") == alone


@pytest.mark.mpi
@pytest.mark.parametrize("ranks, killed", [(4, [2]), (5, [1, 4])])
def test_with_faults_continue_the_others_go_on_to_the_same_bits(alone, tmp_path, ranks, killed):
    """The first of a group dies (its helper works on alone), a helper dies, a rank that works alone dies."""
    job = Job(ranks, tmp_path / "run", "window.shards=2", "window.threshold=0", "faults=continue",
              options=("--with-ft", "ulfm"))
    for rank in killed:
        job.signal(rank, signal.SIGKILL)
    code, out = job.end()
    assert (tmp_path / "run" / "done").exists(), (code, out)
    assert "going on with" in out
    assert flat(tmp_path / "run") == alone
