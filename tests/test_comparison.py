"""The comparison of objectives: what its file may say, what its tables hold, and that it goes on where it was killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpiprop.config import loader
from mpiprop.core.errors import UserError
from tools.compare_objectives import TABLES, Comparison, Place, prepare, table

ROOT = Path(__file__).parent.parent
TOY = """
prompts: [a red ball]
seeds: [0]
window: 2
set: ["turntable={frames: 1, size: 16}", "mesh={resolution: 8, texture: 0}", stages.0.terms.0.views.size=8]
scenes:
  balls: {config: toy, steps: 4}
objectives:
  SDS: {weight: 0.5, guidance: {use: SDS, scale: [[0, 5], [50, 4]]}}
  CSD: {weight: 1, guidance: {use: CSD}}
  second: {weight: 2, after: SDS, share: 0.5, guidance: {use: Bridge, target: a red ball, source: a blue ball}}
"""


def written(folder: Path, text: str = TOY) -> Path:
    (file := folder / "comparison.yaml").write_text(text)
    return file


@pytest.mark.parametrize("before, after, told", [
    ("seeds:", "seed:", "seed: unknown key"), ("steps: 4", "steps: 0", "scenes.balls.steps"),
    ("after: SDS", "after: CDS", "CDS"), ("use: CSD", "use: CSX", "CSX"), ("config: toy", "config: toi", "toi")])
def test_a_mistake_is_named(before: str, after: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        prepare(Comparison.read(written(tmp_path, TOY.replace(before, after, 1))), tmp_path)


def test_schedules_count_hundredths_and_a_second_stage_begins_where_they_end(tmp_path: Path) -> None:
    comparison = Comparison.read(written(tmp_path, TOY.replace("steps: 4", "steps: 40")))
    prepare(comparison, tmp_path)
    first, second = (loader.load(str(tmp_path / "balls" / f"{name}.yaml")).stages[0] for name in ("sds", "second"))
    assert first.terms[0].guidance.keys["scale"] == ((0, 5), (20, 4)) and first.terms[0].weight == 0.5
    assert (first.steps, second.steps) == (40, 20) and second.terms[0].guidance.use == "Bridge"
    toy = loader.load("toy").stages[0]
    assert first.terms[0].guidance.keys["prior"] == toy.terms[0].guidance.keys["prior"]


def test_the_table_has_means_over_all_and_deviations_of_the_seeds(tmp_path: Path) -> None:
    text = TOY.replace("[0]", "[3, 4]").replace("[a red ball]", "[a red ball, a blue ball]")
    comparison, red, blue = Comparison.read(written(tmp_path, text)), "a red ball", "a blue ball"
    for prompt, seed, iou in ((red, 3, 0.2), (blue, 3, 0.4), (red, 4, 0.6), (blue, 4, 0.4)):
        folder = Place(tmp_path, "balls", "CSD", prompt, seed).folder()
        folder.mkdir(parents=True)
        (folder / "figures.json").write_text(json.dumps({"iou": iou}))
    title, _, *rows = (line.split(" | ") for line in table(comparison, tmp_path, "balls", TABLES[0]).splitlines())
    assert rows[1][title.index("IoU")] == "0.400 ± 0.141" and rows[0][title.index("IoU")] == "-"  # (0.5 - 0.3) / sqrt(2)
    assert [row[-1] for row in rows] == ["0 |", "4 |", "0 |"]


def test_the_table_has_differences_from_the_first_row_over_pairs_and_their_standard_error(tmp_path: Path) -> None:
    comparison = Comparison.read(written(tmp_path, TOY.replace("[0]", "[3, 4, 5]")))
    for row, values in (("SDS", (0.2, 0.4, 0.9)), ("CSD", (0.1, 0.2))):
        for seed, iou in zip(comparison.seeds, values):
            (folder := Place(tmp_path, "balls", row, "a red ball", seed).folder()).mkdir(parents=True)
            (folder / "figures.json").write_text(json.dumps({"iou": iou}))
    title, _, *rows = (line.split(" | ") for line in table(comparison, tmp_path, "balls", TABLES[0]).splitlines())
    cells = [row[title.index("IoU - first row's")] for row in rows]
    assert cells == ["+0.000 ± 0.000", "-0.150 ± 0.050", "-"]  # -0.1 and -0.2: their deviation 0.0707, over the root of 2


def test_killed_after_a_run_it_goes_on_and_makes_the_rest(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools" / "compare_objectives.py", written(tmp_path), "--out", tmp_path / "out"]
    first = tmp_path / "out" / "balls" / "sds" / "a-red-ball-0" / "figures.json"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not first.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    made = first.stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    quality, cost = (tmp_path / "out" / "tables.md").read_text().split("\n\n")[1:]
    (title, _, *rows), (_, _, *measured) = ([line.split(" | ") for line in part.splitlines()] for part in (cost, quality))
    assert first.stat().st_mtime_ns == made and [row[-1] for row in (*measured, *rows)] == ["1 |"] * 6
    predictions = [row[title.index("predictions")] for row in rows]
    assert predictions == ["2.0", "2.0", "2.0"] and all(float(row[title.index("T/K")]) >= 1 for row in rows)
    assert (tmp_path / "out" / "balls.png").exists() and (tmp_path / "out" / "balls-sheet.png").exists()
