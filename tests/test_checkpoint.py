"""Checkpoints: what is saved is what is loaded; damage is found; a write that fails leaves the file that was there."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from mpiprop.run import checkpoint
from mpiprop.run.checkpoint import Checkpoint
from mpiprop.run.checkpoint_file import inspect
from mpiprop.core import ancestry
from mpiprop.core.errors import RunError, UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Layout, State, Theta
from mpiprop.picard.window import Window
from mpiprop.shapes.clouds.densify import MOVES, VIEWS

LAYOUT = Layout.of([("w", (20, 40), "a"), ("b", (200,), "c")], [("rides", (7,))])


def window() -> Window:
    theta, *guess = (Theta(normal(Streams(0, i)("theta"), LAYOUT.L), LAYOUT) for i in range(4))
    slots = {name: normal(Streams(0, 0)(name), LAYOUT.D) for name in "mv"}
    return Window(State(37, theta, slots), tuple(guess), 1.25e-6, 9)


def saved(path) -> Checkpoint:
    made = Checkpoint(window(), "coarse", 3, "prompt: a 'red' chair — ü\nseed: 3\nstages: [{name: coarse, steps: 90}]\n")
    checkpoint.save(path, made)
    return made


def same(a: Checkpoint, b: Checkpoint) -> bool:
    x, y = a.window.x, b.window.x
    return ((a.stage, a.seed, a.config, a.complete, x.tau, a.window.k, a.window.e, x.theta.layout, set(x.slots))
            == (b.stage, b.seed, b.config, b.complete, y.tau, b.window.k, b.window.e, y.theta.layout, set(y.slots))
            and torch.equal(x.theta.flat, y.theta.flat) and all(torch.equal(x.slots[name], y.slots[name]) for name in x.slots)
            and len(a.window.guess) == len(b.window.guess)
            and all(torch.equal(one.flat, two.flat) for one, two in zip(a.window.guess, b.window.guess)))


def test_loading_is_the_inverse_of_saving(tmp_path):
    made = saved(tmp_path / "window.h5")
    assert same(checkpoint.load(tmp_path / "window.h5"), made)
    assert [path.name for path in tmp_path.iterdir()] == ["window.h5"]


def test_schema(tmp_path):
    """The objects and attributes that users and other programs rely on."""
    saved(tmp_path / "window.h5")
    with h5py.File(tmp_path / "window.h5") as file:
        assert {"format", "mpiprop", "stage", "tau", "k", "e", "seed", "config", "complete"} <= set(file.attrs)
        assert file.attrs["tau"] == 37 and file.attrs["k"] == 9 and file.attrs["e"] == 1.25e-6 and not file.attrs["complete"]
        assert yaml.safe_load(file.attrs["config"])["prompt"] == "a 'red' chair — ü"
        assert file["x/flat"].shape == (LAYOUT.L,) and file["x/flat"].dtype == "float32"
        assert Layout.from_json(file["x/layout"][()].decode()) == LAYOUT
        vectors = [file["x/flat"], *file["x/slots"].values(), *file["guess"].values()]
        assert len(vectors) == 6 and all(vector.fletcher32 for vector in vectors)


def test_a_cloud_saved_by_version_0_1_0_is_read(tmp_path):
    """Then ids and statistics were among the slots, the two statistics one after the other, and layouts marked no points."""
    def theta(N: int) -> Theta:
        layout = Layout.of([("geometry.x", (N, 3), "x"), ("background.c", (2,), "c")], per_point={"geometry.x"})
        return Theta(normal(Streams(0, N)("theta"), layout.L), layout, ancestry.roots(N))
    first, grown = theta(4), theta(6)
    x = State(7, first, {"m": torch.ones(14)}, {MOVES: torch.arange(4.0), VIEWS: torch.full((4,), 2.0)})
    again = replace(first, flat=first.flat + 1)
    checkpoint.save(tmp_path / "new.h5", Checkpoint(Window(x, (again, grown, grown), 0.5, 3), "splats", 0, "x: 1"))
    with h5py.File(tmp_path / "new.h5") as new, h5py.File(tmp_path / "old.h5", "w") as old:
        old.attrs.update(dict(new.attrs) | {"format": 1})
        vectors = {name: new[name] for name in ("x/flat", "x/slots/m", "guess/000", "guess/001", "guess/002")}
        vectors |= {"x/slots/seen": np.concatenate([new["x/statistics/moves"], new["x/statistics/views"]]),
                    "x/slots/points": new["x/ancestry"], "points/001": new["ancestry/001"]}
        assert set(new["ancestry"]) == {"001"}  # stored where the points change
        for name, values in vectors.items():
            old[name] = values[()] if isinstance(values, h5py.Dataset) else values
        old.attrs["vectors"] = np.bytes_(" ".join(vectors).encode())
        layout = json.loads(new["x/layout"][()])
        del layout["per_point"]
        old["x/layout"] = np.array(json.dumps(layout).encode())
    one, two = (checkpoint.load(tmp_path / f"{name}.h5") for name in ("new", "old"))
    assert same(one, two) and [len(theta.ancestry) for theta in two.window.guess] == [4, 6, 6]
    for found in (one.window, two.window):
        assert found.x.theta.layout == first.layout and found.guess[1].layout == grown.layout
        assert all(torch.equal(found.x.statistics[name], x.statistics[name]) for name in (MOVES, VIEWS))
        assert torch.equal(found.guess[2].flat, grown.flat) and torch.equal(found.guess[0].ancestry, first.ancestry)


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    made = saved(tmp_path / "window.h5")
    raw = (tmp_path / "window.h5").read_bytes()
    draw, noticed = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        (tmp_path / "flipped.h5").write_bytes(damaged)
        try:
            assert same(checkpoint.load(tmp_path / "flipped.h5"), made)
        except UserError as error:
            assert "flipped.h5: " in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 200  # most of the file is data


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    saved(tmp_path / "window.h5")
    raw = (tmp_path / "window.h5").read_bytes()
    (tmp_path / "window.h5").write_bytes(raw[:int(share * len(raw))])
    with pytest.raises(UserError, match="window.h5: damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "window.h5")
    with pytest.raises(UserError, match="window.h5"):
        inspect(tmp_path / "window.h5")


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1, 2]
    with pytest.raises(UserError, match="format None"):
        checkpoint.load(tmp_path / "other.h5")
    with pytest.raises(UserError, match="not a checkpoint of mpiprop"):
        inspect(tmp_path / "other.h5")


def test_inspect_tells_what_is_there(tmp_path):
    saved(tmp_path / "window.h5")
    text = inspect(tmp_path / "window.h5")
    for part in ("verified", "stage      coarse, 1 of 1", "tau        37: optimiser steps done, of 90 in this stage",
                 "k          9: iterations of the window that it took, 4.11 steps each", "e          1.25e-06: threshold",
                 "3 guesses", "no: continue with --resume", "1,000 trained, plus 7 stored but not trained", "/x/slots/m",
                 "/guess/002", "rides                                7 at 1,000, stored but not trained"):
        assert part in text


FULL = """
import sys, resource
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from test_checkpoint import window
from mpiprop.run import checkpoint
from mpiprop.core import ancestry
from mpiprop.core.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    checkpoint.save(Path(sys.argv[1]), checkpoint.Checkpoint(window(), "coarse", 4, "other"))
except RunError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_the_previous_file(tmp_path):
    """A limit on file size fails writes in the middle just as a full disk does; a process of its own bears it."""
    made = saved(tmp_path / "window.h5")
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "window.h5", Path(__file__).parent],
                          capture_output=True, text=True, timeout=60)
    assert "cannot write the checkpoint" in done.stdout and "is whole" in done.stdout, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1
    assert same(checkpoint.load(tmp_path / "window.h5"), made)
    assert [path.name for path in tmp_path.iterdir()] == ["window.h5"]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot write the checkpoint"):
        saved(tmp_path / "gone" / "window.h5")
