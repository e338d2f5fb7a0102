"""Predictions against closed forms, and the command `plan` on a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mpiprop.cli.main import dispatch
from mpiprop.core.errors import UserError
from mpiprop.planning.constants import FITS
from mpiprop.planning.laws import Costs, Law, Work, choices, observe, predict, rounds, sequential, table, worthwhile

WORK = Work("coarse", T=1000, batches=(16,), D=1_000_000, L=1_200_000)
IDEAL = Law()  # every step of a window is accepted


@pytest.mark.parametrize("p", [1, 2, 7, 31])
def test_ideal_iterations_on_free_links_are_p_times_as_fast(p: int) -> None:
    assert predict(WORK, Costs(2.0), IDEAL, p, p, 1).speedup == pytest.approx(p)


@pytest.mark.parametrize("b", [1, 2, 4, 16])
def test_shards_divide_what_depends_on_the_views(b: int) -> None:
    """Amdahl's law with the fixed share."""
    assert predict(WORK, Costs(2.0, fixed=0.2), IDEAL, 1, 1, b).speedup == pytest.approx(1 / (0.2 + 0.8 / b))


def test_the_largest_part_decides() -> None:
    costs = Costs(2.0, fixed=0.0)
    assert costs.evaluation(WORK, 3) == pytest.approx(2.0 * 6 / 16)
    assert costs.evaluation(replace(WORK, batches=(4, 1)), 4) == pytest.approx(2.0 * 2 / 5)


def test_sequential_is_evaluations_and_optimiser_steps() -> None:
    assert sequential(WORK, Costs(2.0, 0.5, 1e-9)).seconds == pytest.approx(1000 * 2.5)


@pytest.mark.parametrize("shards", [1, 4])
def test_twice_the_bandwidth_halves_what_messages_take(shards: int) -> None:
    """The rest of the time is what links without cost leave."""
    free, slow, fast = (predict(WORK, Costs(1.0, 0.01, byte), IDEAL, 7, 7, shards).seconds for byte in (0, 4e-8, 2e-8))
    assert slow - free == pytest.approx(2 * (fast - free))
    assert slow - free == pytest.approx(1000 / 7 * (7 + shards - 1) * 8.8e6 * 4e-8)


def test_traffic_is_a_theta_and_a_gradient_for_each_slot() -> None:
    choice = predict(WORK, Costs(1.0), IDEAL, 7, 7, 1)
    assert choice.root_bytes_per_s * choice.seconds == pytest.approx(1000 * 4 * (1_000_000 + 1_200_000))


def test_rounds_of_equal_groups() -> None:
    """Full acceptance takes whole turns; early errors let the next iteration fill the gaps."""
    assert rounds(7, 7, 6.0) == 1
    assert rounds(6, 4, 6.0) == 2
    assert rounds(6, 4, 1.0) == pytest.approx(1.5, abs=0.1)


def test_law_meets_its_ends_and_the_measured_pair() -> None:
    law = Law(limit=4.0).through(7, 5.2)
    assert law(1) == 1 and law(7) == pytest.approx(5.2)
    assert [law(p) < p for p in (2, 15, 100)] == [True] * 3 and law(15) < law(100) < 1 + law.limit
    assert Law(limit=4.0).through(7, 7.0) == IDEAL and IDEAL(31) == 31
    assert Law(limit=4.0).through(7, 1.0)(31) == 1
    assert Law(0.7).through(3, 2.0)(9) == pytest.approx(5.0), "the paper's rule: a share of the window"


@pytest.mark.parametrize("rule, threshold", [("momentum", "auto"), ("copy", "auto"), ("paper", 5e-6), ("exact", 0.0)])
def test_laws_before_a_run_are_near_the_demo_and_below_the_toy(rule: str, threshold: str | float) -> None:
    fit, law = FITS[rule], Law.of(threshold, rule)
    assert law(7) == pytest.approx(fit.demo, rel=0.08)
    assert all(law(p) < 1.06 * ratio for p, ratio in fit.toy.items())


@pytest.mark.parametrize("rule", ["momentum", "paper"])
def test_what_the_laws_were_fitted_to_can_be_measured_again(rule: str, tmp_path: Path) -> None:
    fit = FITS[rule]
    assert dispatch(["run", "toy", "stages.0.steps=240", "window.size=3", *fit.keys.split(), "turntable.frames=1",
                     "mesh.resolution=8", "--out", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["tau"] / last["k"] == pytest.approx(fit.toy[3], rel=0.05)


def test_one_rank_is_sequential() -> None:
    assert choices(WORK, Costs(1.0), IDEAL, 1) == [sequential(WORK, Costs(1.0))]


@pytest.mark.parametrize("ranks", [2, 8, 64, 200])
@pytest.mark.parametrize("batches", [(1,), (2,), (16,), (4, 1)])
def test_choices_fit_the_ranks_the_batch_and_the_steps(ranks: int, batches: tuple[int, ...]) -> None:
    found = choices(replace(WORK, batches=batches, T=40), Costs(1.0), Law(limit=9.0), ranks)
    assert all(choice.ranks <= ranks and choice.shards <= max(batches) and choice.size <= 40 for choice in found)
    assert [choice.seconds for choice in found] == sorted(choice.seconds for choice in found)


def test_where_windows_saturate_more_ranks_share_batches() -> None:
    """64 workers on a batch of 16: a window of 64 gains no more than 10 steps."""
    assert choices(WORK, Costs(1.0, fixed=0.0), Law(limit=9.0), 65)[0].shards > 1


def test_costly_links_make_one_rank_the_best() -> None:
    found = choices(WORK, Costs(1e-3, byte=1e-6), IDEAL, 8)
    assert found[0] == sequential(WORK, Costs(1e-3))
    assert table(found).splitlines()[1].split()[:4] == ["best", "1", "1", "1"]


@pytest.mark.parametrize("size, groups, shards", [(7, 7, 1), (3, 3, 2), (6, 4, 2)])
def test_a_run_as_predicted_is_observed_as_it_was(size: int, groups: int, shards: int) -> None:
    """Observation is the inverse of prediction."""
    costs, law = Costs(0.8, 0.01, 1e-9, 0.2), Law(limit=9.0)
    choice = predict(WORK, costs, law, size, groups, shards)
    K = 1000 / choice.ratio
    slide = {"errors": [1.0] * size, "evaluations": size} | {
        f"{part}_s": getattr(choice, part) * choice.seconds / K for part in ("evaluate", "rollout", "transport")}
    slides = [slide | {"tau": k * choice.ratio, "k": k} for k in (1, 2, 3)]
    seen, through = observe(slides, WORK, size, shards, choice.ranks, 0.2, Law(limit=4.0))
    assert (seen.evaluate, seen.rollout, seen.byte) == pytest.approx((0.8, 0.01, 1e-9))
    assert through.limit == pytest.approx(9.0)


def test_one_rank_observed() -> None:
    slides = [{"tau": k, "k": k, "errors": [0.0], "evaluations": 1, "evaluate_s": 0.5 if k > 1 else 9.0, "rollout_s": 0.1,
               "transport_s": 0.01} for k in (1, 2, 3)]
    costs, law = observe(slides, WORK, 1, 1, 1, 0.1, Law(limit=9.0))
    assert costs == Costs(0.5, pytest.approx(0.1), 0.0, 0.1) and law == Law(limit=9.0)


def test_costs_of_another_batch() -> None:
    scaled = Costs(2.0, 0.1, fixed=0.5).scaled(WORK, replace(WORK, batches=(8,), D=2_000_000))
    assert (scaled.evaluate, scaled.rollout) == pytest.approx((1.5, 0.2))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as toy leaves it on 4 ranks: an evaluation of 2 s, a T/K of 2.5."""
    from mpiprop.config import loader
    (tmp_path / "config.yaml").write_text(loader.resolved(loader.load("toy", ["window.size=3"])))
    slides = [{"stage": "toy", "tau": 5 * k // 2, "k": k, "stride": 2, "e": 0.1, "errors": [0.0] * 3, "seconds": 2.2,
               "evaluations": 3, "evaluate_s": 2.0, "rollout_s": 0.03, "transport_s": 0.15} for k in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(slide) + "\n" for slide in slides))
    return tmp_path


def test_plan_of_a_measured_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert dispatch(["plan", "toy", "stages.0.steps=1000", "--ranks", "4", "--measured", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (stage,) = told["stages"]
    assert stage["costs"]["evaluate"] == pytest.approx(2.0)
    same = next(choice for choice in stage["choices"] if (choice["size"], choice["shards"]) == (3, 1))
    assert same["seconds"] == pytest.approx(1000 / 2.5 * (2.0 + 0.03 + 0.15))
    assert told["command"] == "mpirun -n 4 python -m mpiprop run toy stages.0.steps=1000 window.size=3 window.shards=1"


def test_one_of_a_thing_is_told_in_the_singular(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert dispatch(["plan", "toy", "--ranks", "4", "--measured", str(run)]) == 0
    assert " had window 3, 1 shard, 2 views a step and 4 ranks " in capsys.readouterr().out


def test_plan_tells_a_table_and_its_assumptions(capsys: pytest.CaptureFixture) -> None:
    assert dispatch(["plan", "toy", "--ranks", "8", "--evaluate", "1", "--rollout", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "best" in text and "sequential" in text and "assumed:\n  1 s for 2 views" in text and "2.5 GB/s" in text
    assert "stage toy: 120 steps of 2 views, 5,680 trained numbers, plus 4,096 stored but not trained" in text
    assert text.splitlines()[-1].startswith("mpirun -n 8 python -m mpiprop run toy window.size=7")


def test_what_more_ranks_gain_is_what_the_table_shows() -> None:
    """No choice of as few ranks is as fast as one that is shown; every other has its better among them."""
    found = choices(WORK, Costs(1.0, 0.02, 1e-9), Law(limit=9.0), 20)
    kept = worthwhile(found)
    assert sequential(WORK, Costs(1.0, 0.02, 1e-9)) in kept and len(kept) < len(found)
    for choice in found:
        better = [other for other in found if other.ranks <= choice.ranks and other.seconds < choice.seconds]
        assert (choice in kept) != bool(better)
    rows = [line.split() for line in table(found).splitlines()[1:-1]]
    assert [float(row[-9]) for row in rows] == [float(f"{choice.speedup:.2f}") for choice in kept]


def test_one_unit_for_a_column() -> None:
    head, *rows, _ = table(choices(replace(WORK, weights=2 * 10**9), Costs(1.0), IDEAL, 8)).splitlines()
    assert head.endswith("worker (GB)  rank 0 (MB/s)  time (min)")
    one = next(row for row in rows if "sequential" in row).split()
    assert float(one[-1]) == pytest.approx(1000 / 60, abs=0.06)
    assert float(one[-4]) == pytest.approx(2 + 4e-9 * (5 * 1.2e6 + 7 * 1e6), abs=0.006), "one rank holds the prior, too"


def test_the_prior_counts_on_ranks_that_evaluate() -> None:
    bare, full = (predict(replace(WORK, weights=n), Costs(1.0), IDEAL, 7, 7, 1) for n in (0, 10**9))
    assert (full.worker_bytes - bare.worker_bytes, full.root_bytes - bare.root_bytes) == (10**9, 0)


def test_without_a_measurement_speed_ups_are_a_range_and_times_are_left_out(capsys: pytest.CaptureFixture) -> None:
    assert dispatch(["plan", "toy", "--ranks", "8", "--rollout", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "nothing was measured: between 0.3 and 3 s for 2 views" in text and "time (" not in text and "MB/s" not in text
    assert text.splitlines()[-1].startswith("mpirun -n 8 python -m mpiprop run toy window.size=")
    assert dispatch(["plan", "toy", "--ranks", "8", "--rollout", "0.1", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    work = Work(**{**stage["work"], "batches": tuple(stage["work"]["batches"])})
    ends = [predict(work, Costs(seconds, 0.1, 0.4e-9), Law.of("auto", "momentum"), 7, 7, 1).speedup for seconds in (3.0, 0.3)]
    assert not stage["measured"] and f"{min(ends):.2f}-{max(ends):.2f}" in text


def test_the_built_in_prior_is_in_a_worker_s_memory(capsys: pytest.CaptureFixture) -> None:
    from mpiprop.priors.diffusion import StableDiffusion
    assert dispatch(["plan", "demo", "--ranks", "2", "--evaluate", "1", "--rollout", "0.01", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    prior = StableDiffusion("cpu")
    held = sum(p.numel() * p.element_size() for part in (prior.unet, prior.vae) for p in part.parameters())
    assert stage["work"]["weights"] == pytest.approx(held, rel=0.01) and held > 10**6


@pytest.mark.parametrize("words, message", [
    ([], "required: --ranks"),
    (["--ranks", "0", "--evaluate", "1"], "needs at least 1"),
    (["--ranks", "8", "--evaluate", "-1"], "--evaluate"),
    (["--ranks", "8", "--evaluate", "1", "--fixed", "2"], "--fixed"),
    (["--ranks", "8", "--measured", "no/such/run"], "no/such/run")])
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dispatch(["plan", "toy", *words])


def test_a_run_of_other_stages_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="has no stage 'coarse' but toy"):
        dispatch(["plan", "demo", "--ranks", "8", "--measured", str(run)])
