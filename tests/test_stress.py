"""A short round of tools/stress.py: signals at random moments, also between stages and while results are written."""

import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parents[1] / "tools" / "stress.py"


@pytest.mark.mpi
@pytest.mark.parametrize("words", [["--configs", "toy", "--steps", "30", "--rounds", "3"],
                                   ["--configs", "demo/dreamgaussian", "--steps", "6", "--rounds", "3"]], ids=["toy", "stages"])
def test_no_run_is_lost_or_different(words):
    done = subprocess.run([sys.executable, STRESS, *words, "--ranks", "2", "--signals", "KILL", "INT", "TERM", "--seed", "4",
                           "--limit", "100"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 signals in" in done.stdout and "0 runs lost or different" in done.stdout
