"""A short round of tools/stress.py: signals at random moments, also between stages and while results are written."""

import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parents[1] / "tools" / "stress.py"


@pytest.mark.mpi
@pytest.mark.parametrize("words", ["--configs toy --steps 40 --rounds 2 --seed 1 --moments start-up slides",
                                   "--configs demo/dreamgaussian --steps 4 --rounds 3 --seed 6 --moments stages results"])
def test_no_run_is_lost_or_different(words):
    done = subprocess.run([sys.executable, STRESS, *words.split(), "--ranks", "2", "--signals", "KILL", "INT", "TERM"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; 0 runs lost or different" in done.stdout
