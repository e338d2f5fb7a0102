"""The comparison of generators: which prompts are seen and unseen, what ranks would have taken, and that it goes on where it
was killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mpiprop.config import loader
from mpiprop.config.prompts import read_prompts
from mpiprop.core.errors import UserError
from mpiprop.run.folders import slug
from tools.compare_generators import begin
from tools.generators import Comparison, Training, pairs, spent

ROOT = Path(__file__).parent.parent
SMALL = {"prompts": ["a red ball"], "unknown_words": "warn", "stages": [{
    "name": "balls", "steps": 40, "shape": {"use": "HyperINGP", "radius": 1.0, "text_width": 3, "levels": 2, "log2_table": 6,
                                            "base_resolution": 4, "hidden": 4},
    "material": {"use": "NoMaterial"}, "background": {"use": "NeuralEnvironment", "eval_colour": [1, 1, 1]},
    "render": {"use": "VolSDF", "proposal": 8, "importance": 4}, "optimiser": {"use": "Adam", "lr": [[0, 0.02], [40, 0.01]]},
    "terms": [{"name": "novel", "views": {"use": "Random", "batch": 2, "size": 8},
               "guidance": {"use": "SDS", "prior": {"use": "ClosedForm"}, "prompts": {"use": "Plain"}}}]}]}
COMPARISON = {
    "steps": 4, "prompts": 4, "judged": 1, "truth": False, "window": 2, "window_steps": 2, "networks": {"small": None},
    "objectives": {"SDS": {"weight": 0.5, "guidance": {"use": "SDS", "scale": [[0, 5], [50, 4]]}}},
    "set": ["turntable={frames: 1, size: 16}", "mesh={resolution: 12, faces: 200, texture: 0}"]}
BASE = Training("small", "SDS", 4, 4)


def written(folder: Path, **keys: object) -> Path:
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    (file := folder / "comparison.yaml").write_text(yaml.safe_dump(COMPARISON | {"config": f"{folder / 'small.yaml'}"} | keys))
    return file


def slid(folder: Path, *slides: tuple[int, float]) -> None:
    """Writes evaluations and seconds of each slide as a run does."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"evaluations": n, "evaluate_s": seconds, "stride": 1}) for n, seconds in slides]
    (folder / "metrics.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("keys, told", [
    ({"step": 3}, "step: unknown key"), ({"steps": 0}, "steps"), ({"scaling": [4]}, "scaling: needs parallel"),
    ({"parallel": {"network": "smal", "objective": "SDS"}}, "parallel.network: 'smal' .*did you mean 'small'"),
    ({"networks": {"small": {"shape": {"use": "HyperINPG"}}}}, "HyperINPG")])
def test_a_mistake_is_named(keys: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        begin(written(tmp_path, **keys), tmp_path / "out")


def test_of_unseen_prompts_shape_and_look_are_seen_apart() -> None:
    train, val, fewer = set(read_prompts("builtin", "train")), set(read_prompts("builtin", "val")), []
    for n in (1, 4, 16, 50, 10**6):
        seen, unseen = pairs(n).values()
        assert len(seen) == len(set(seen)) == n or n > len(train)
        assert set(seen) <= train and seen[:len(fewer)] == fewer
        looks, shapes = ({prompt.split()[i] for prompt in seen} for i in (1, 2))
        assert set(unseen) == {prompt for prompt in val if prompt.split()[1] in looks and prompt.split()[2] in shapes}
        assert bool(unseen) == (n > 1)
        fewer = seen


def test_a_training_is_the_configuration_with_its_prompts_and_schedules_as_long_as_itself(tmp_path: Path) -> None:
    comparison = Comparison.read(written(tmp_path, steps=20, parallel=None, set=["stages.0.terms.0.views.batch=3"]))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(comparison.tree(Training("small", "SDS", 3, 20, batch=7, shards=7))))
    run = loader.load(str(tmp_path / "a.yaml"))
    (stage,), (term,) = run.stages, run.stages[0].terms
    assert run.prompts == tuple(pairs(3)["seen"]) and stage.window.shards == 7 and term.views.keys["batch"] == 21
    assert stage.optimiser.keys["lr"] == ((0, 0.02), (20, 0.01)) and term.guidance.keys["scale"] == ((0, 5), (10, 4))
    assert term.weight == 0.5 and term.guidance.keys["prior"].use == "ClosedForm"


def test_a_slide_takes_as_long_as_the_worker_with_most_evaluations(tmp_path: Path) -> None:
    slid(tmp_path, (7, 14.0), (7, 21.0), (0, 0.0), (3, 6.0), (8, 16.0))
    assert spent(tmp_path, 7) == (25, (1 + 1 + 1 + 2) * 2.0)
    assert spent(tmp_path, 1) == (25, 25 * 2.0)
    slid(tmp_path, (1, 8.0), (1, 8.0), (1, 80.0))  # a step in 4 shards of 2 s, on 3 workers and on 7
    assert spent(tmp_path, 3, 4) == (3, 3 * 2 * 2.0) and spent(tmp_path, 7, 4) == (3, 3 * 2.0)


def test_trainings_over_ranks_have_equal_evaluations_or_equal_wall_clock(tmp_path: Path) -> None:
    """Steps of 140 in windows of 7: 28 slides of 5 evaluations of 1 s. Shards of 7 times the batch take 1.4 s each, those of
    the same batch, of 2 views, 0.5 s."""
    comparison = Comparison.read(written(tmp_path, steps=140, parallel={"network": "small", "objective": "SDS"}))
    slid(Training("small", "SDS", 4, 140, window=7).folder(tmp_path), *[(5, 5.0)] * 28)
    slid(Training("small", "SDS", 4, 20, batch=7, shards=7).folder(tmp_path), *[(1, 9.8)] * 20)
    slid(Training("small", "SDS", 4, 140, shards=2).folder(tmp_path), *[(1, 1.0)] * 140)
    found = [(training.window, training.batch, training.shards, training.steps) for _, training in comparison.methods(tmp_path)]
    assert found == [(7, 1, 1, 140), (1, 7, 7, 20), (1, 7, 7, 28 / 1.4), (1, 1, 2, 140), (1, 1, 2, 28 / 0.5)]


def test_killed_after_an_object_it_goes_on_and_makes_the_rest(tmp_path: Path) -> None:
    file, out = written(tmp_path), tmp_path / "out"
    first = BASE.folder(out) / "objects" / slug(pairs(4)["seen"][0]) / "figures.json"
    with subprocess.Popen([sys.executable, ROOT / "tools" / "compare_generators.py", file, "--out", out]) as process:
        while not first.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    made = first.stat().st_mtime_ns, (BASE.folder(out) / "done").stat().st_mtime_ns
    tasks, report = begin(file, out)
    assert [task() for task in tasks] == [[], []]
    report()
    assert made == (first.stat().st_mtime_ns, (BASE.folder(out) / "done").stat().st_mtime_ns)
    titles, _, row = ([cell.strip() for cell in line.split("|")] for line in (out / "tables.md").read_text().splitlines()[2:5])
    told = dict(zip(titles, row))
    assert told["network"] == "small" and told["objects"] == "1 / 1" and told["IoU"] == "- / -"
    assert all(-1 < float(value) < 1 for value in told["similarity"].split(" / "))
    assert float(told["T/K"]) >= 1 and float(told["MB an evaluation"]) == 0.01  # theta and gradient, 4 bytes a number
    assert (out / "generators.png").exists() and (out / "curves.png").exists()
