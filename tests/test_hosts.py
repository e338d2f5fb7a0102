"""mpirun over three hosts with network addresses of their own gives the bits of one process."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from finished import flat

pytestmark = pytest.mark.hosts
AGENT = Path(__file__).parent / "sandbox/hosts.sh"
# A program of MPI's: of one that ends as soon as it has begun, mpirun may miss the end.
WHERE = "import socket; from mpi4py import MPI; print(*MPI.COMM_WORLD.gather(socket.gethostname()) or [])"
TOY = ["toy", "stages.0.steps=60", "turntable.frames=1", "mesh.resolution=8"]


@pytest.fixture(scope="module")
def hosts():
    """Words for `mpirun` to run on three hosts, and its environment."""
    with tempfile.TemporaryDirectory(prefix="mpiprop-") as sandbox:
        env = os.environ | {"SANDBOX": sandbox, "PRTE_MCA_plm_ssh_agent": str(AGENT),
                            "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe"}
        subprocess.run([AGENT, "up", "3"], env=env, check=True, timeout=30)
        yield ["--host", "h1,h2,h3"], env
        subprocess.run([AGENT, "down"], env=env, check=True, timeout=30)


@pytest.mark.parametrize("overrides", [["window.threshold=0"], []])
def test_three_hosts_give_the_bits_of_one_process(hosts, tmp_path, overrides):
    words, env = hosts
    where = subprocess.run(["mpirun", *words, "-n", "4", sys.executable, "-c", WHERE], env=env, check=True, timeout=60,
                           text=True, stdout=subprocess.PIPE).stdout.split()
    assert sorted(where) == ["h1", "h1", "h2", "h3"]
    run = [sys.executable, "-m", "mpiprop", "run", *TOY, *overrides, "--out"]
    subprocess.run(["mpirun", *words, "-n", "4", *run, tmp_path / "hosts"], env=env, check=True, timeout=120)
    subprocess.run([*run, tmp_path / "alone"], check=True, timeout=120)
    assert flat(tmp_path / "hosts") == flat(tmp_path / "alone")
