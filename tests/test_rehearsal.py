"""The rehearsal for a GPU, small and on the CPU: what it finds, that it notices what is wrong, and that a failing section
leaves the others alone."""

import json
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from mpiprop.cli.parser import parsers
from tools.rehearsal import oracles, packages
from tools.rehearsal.book import Section, apart, largest
from tools.rehearse_gpu import Rehearsal

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def section(folder: Path) -> Section:
    return Section(folder, folder / "rows.jsonl", True, 60.0)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.mpi
@pytest.mark.slow
def test_the_small_rehearsal_finds_nothing_bad(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tools" / "rehearse_gpu.py", "--small", "--out", tmp_path / "out", "--work",
                           tmp_path / "work", "--only", "models,precision,systems,ranks,oracles"],
                          text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "rehearsal.json").read_text())
    assert found["small"] and found["bad"] == []
    assert {name: one["state"] for name, one in found["sections"].items()} == dict.fromkeys(
        ("models", "precision", "systems", "ranks", "oracles"), "done")
    held = {row["what"]: row for one in found["sections"].values() for row in one["rows"]}
    assert held["three ranks: the bits of one"]["ok"] and held["link: R"]["value"] > 0
    assert 0 < held["float16: noise"]["value"] < held["bfloat16: noise"]["value"] < 0.3
    for name in ("dreamfusion-sd coarse", "prolificdreamer coarse", "dreamgaussian splats", "magic3d-sd refine"):
        assert held[f"{name} step 0: same bits twice"]["ok"] and held[f"{name} step 0: an evaluation"]["value"] > 0
    for what in ("Gaussians, 32 x 48: torch, gradient in rotations", "tiny triangles, 16 x 16: torch, gradient in vertices",
                 "hash encoding, points: torch, gradient in table", "samples in cells 30% full, 4 x 4: torch"):
        assert held[what]["ok"] and held[what]["value"] < 1e-4
    assert held["a wrong gradient is noticed"]["ok"] and held["no Gaussian seen, 16 x 16: torch, forward"]["value"] == 0
    assert len(found["plan"]) == 6
    for command in found["plan"]:
        given = parsers()["plan"].read(command.partition("  #")[0].split()[2:])
        assert given.evaluate > 0 and 0 <= given.fixed <= 1 and given.bandwidth > 0 and given.rollout > 0
    assert "| **systems** | done |" in (tmp_path / "out" / "rehearsal.md").read_text()


def test_a_wrong_library_is_noticed(tmp_path):
    """One whose picture is right and whose gradient is not, one that gives other bits each time, one that fails."""
    calls = iter(range(100))

    def wrong_slope(x: torch.Tensor) -> torch.Tensor:
        return x.detach() ** 2 + 3 * (x - x.detach()) * x.detach()

    def restless(x: torch.Tensor) -> torch.Tensor:
        return x ** 2 * (1 + 1e-6 * next(calls))

    def failing(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image\nat line 1")

    for name, function in (("wrong", wrong_slope), ("restless", restless), ("failing", failing)):
        case = oracles.Case(name, {"x": torch.tensor([1.0, 2.0, 3.0])}, lambda x: x ** 2, {"torch": function})
        oracles.compare(section(tmp_path), case, CPU)
    found = {row["what"]: row for row in rows(tmp_path)}
    assert found["wrong: torch, forward"]["ok"] and found["wrong: torch, gradient in x"]["ok"] is False
    assert found["wrong: torch, gradient in x"]["value"] == pytest.approx(0.5)
    assert found["restless: torch, forward"]["ok"] and found["restless: torch, same bits twice"]["ok"] is False
    assert found["failing: torch"]["ok"] is False and found["failing: torch"]["note"] == "RuntimeError: no kernel image"


@pytest.mark.parametrize("measure", [apart, largest])
def test_numbers_that_are_none_are_never_near(measure):
    one = torch.tensor([1.0, 2.0])
    assert measure(one, one) == 0 and measure(torch.tensor([1.0, torch.nan]), one) == float("inf")
    assert measure(torch.ones(3), one) == float("inf") and measure(torch.tensor([0.0, 1.0]), torch.zeros(2)) == 1


def test_a_section_that_fails_or_hangs_takes_nothing_along(tmp_path):
    """What it had written stays, the next one runs, and one that there is no time for is told."""
    (tmp_path / "work").mkdir()
    args = Namespace(work=tmp_path / "work", out=tmp_path / "out", small=True, seconds=60, sources=None, only=[])
    rehearsal = Rehearsal(args, sys.executable)
    for name, ending, limit in (("fails", "1 / 0", 30.0), ("hangs", "import time; time.sleep(60)", 4.0)):
        program = f"open({str(tmp_path / 'work' / name)!r} + '.jsonl', 'w').write('{{\"what\": \"one\"}}\\n'); {ending}"
        with open(tmp_path / "work" / f"{name}.log", "w") as log:
            process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log, start_new_session=True)
        rehearsal.end(name, process, limit, rehearsal.begun)
    args.seconds, args.only = 0, ["models"]
    rehearsal.run()
    found = json.loads((tmp_path / "out" / "rehearsal.json").read_text())["sections"]
    assert {name: one["state"] for name, one in found.items()} == {
        "fails": "failed", "hangs": "out of time", "models": "not reached"}
    assert found["fails"]["rows"] == found["hangs"]["rows"] == [{"what": "one"}]
    assert "ZeroDivisionError" in found["fails"]["said"][-1]


def test_wheels_are_installed_beside_what_is_there(tmp_path):
    """A package that is lacking comes from the folder, everything else is still found."""
    wheel = tmp_path / "wheels" / "lackingone-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lackingone.py", "number = 7\n")
        for name, lines in (("METADATA", ["Metadata-Version: 2.1", "Name: lackingone", "Version: 1.0"]), ("RECORD", []),
                            ("WHEEL", ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any"])):
            file.writestr(f"lackingone-1.0.dist-info/{name}", "".join(f"{line}\n" for line in lines))
    python = packages.install(tmp_path / "wheels", tmp_path)
    program = "import lackingone, yaml; print(lackingone.number, yaml.__name__)"
    said = subprocess.check_output([python, "-c", program], text=True)
    assert said.split() == ["7", "yaml"]
    assert packages.install(tmp_path, tmp_path) == sys.executable  # nothing to install
