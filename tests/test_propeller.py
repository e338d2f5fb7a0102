"""Generalized Picard iteration: at e = 0 it is the sequential method to the last bit; at any e, Algorithm 2 as printed, and its
pipelined form, are what a plain loop over whole windows makes of the paper's text."""

import itertools
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from types import SimpleNamespace

import pytest
import torch

from mpiprop.core.errors import Preempted
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Drift, Layout, State, Theta
from mpiprop.picard import algorithm, pipelined, threshold
from mpiprop.optim.optimisers import SGD, Adam, AdamW, Adan
from mpiprop.optim.rollout import Rollout
from mpiprop.picard.window import Window, copies, distance, fit
from mpiprop.transport.serial import Serial

D, RIDING, T = 300, 10, 60
LAYOUT = Layout.of([("a", (200,), "fast"), ("b", (100,), "slow")], [("grid", (RIDING,))])
CURVATURE, CENTRE = torch.linspace(0.05, 2.0, D), normal(Streams(1, 0)("centre"), D)
OPTIMISERS = [Adam(LAYOUT, lr={"fast": 0.03, "slow": [[0, 0.01], [40, 0.001]]}), AdamW(LAYOUT, lr=0.02),
              Adan(LAYOUT, lr=0.02), SGD(LAYOUT, lr=0.02, momentum=0.9)]


def drift(theta: Theta, tau: int) -> Drift:
    """A noisy gradient that also reads the riding state, so that a stale one shows."""
    noise = normal(Streams(3, tau)("noise"), D)
    return Drift(CURVATURE * torch.tanh(theta.trained - CENTRE) + 0.5 * noise + 0.01 * theta.flat[D:].sum(), {"tau": tau})


def swinging(theta: Theta, tau: int) -> Drift:
    """The same, to and fro: iterates leave their guesses and come back, so that errors rise and fall along a window."""
    return replace(drift(theta, tau), grad=drift(theta, tau).grad + 4.0 * (-1) ** tau)


def refresh(theta: Theta, tau: int) -> Theta:
    """Riding state renewed every 16 steps, as an occupancy grid is."""
    if tau % 16:
        return theta
    flat = theta.flat.clone()
    flat[D:] = theta.trained[:RIDING].abs()
    return Theta(flat, LAYOUT)


def zero() -> Theta:
    return Theta(torch.zeros(D + RIDING), LAYOUT)


def sequential(optimiser) -> list[torch.Tensor]:
    """The truth: an ordinary loop of optimiser steps, theta_0 .. theta_T."""
    rollout = Rollout(optimiser, refresh)
    x = rollout.start(zero())
    path = [x.theta.flat]
    for tau in range(T):
        x = rollout(drift(x.theta, tau), x)
        path.append(x.theta.flat.clone())
    return path


def slides(optimiser, p, rule=threshold.fixed, e=0.0, window=None, propel=pipelined.propel, unit=drift, **keys):
    rollout = Rollout(optimiser, refresh)
    window = window or Window(rollout.start(zero()), (), e)
    return propel(window, Serial(unit, lambda: False), rollout, p=p, T=T, threshold=rule, **keys)


def naive(optimiser, unit, p, e, rule, reuse=False, predict=copies):
    """An independent reading of Algorithm 2: whole windows in lists, nothing shared, nothing early.

    With `reuse`, a slot whose error is within e keeps its theta and its drift for the next iteration. Yields tau, k, e after
    the iteration, its errors, and theta_tau.
    """
    h = Rollout(optimiser, refresh)
    start = h.start(zero())
    tau, k, state = 0, 0, start
    theta = [start.theta, *predict(start, p)]  # theta^k at tau, tau + 1, ..., tau + p
    kept = [None] * (p + 1)
    while tau < T:
        drifts = [kept[j] or unit(theta[j], tau + j) for j in range(p)]
        states = [state]
        for j in range(p):
            states.append(h(drifts[j], states[j].copy()))
        errors = [float((states[j].theta.trained - theta[j].trained).double().square().mean()) for j in range(1, p + 1)]
        skip = min([j for j in range(1, p + 1) if errors[j - 1] > e] + [p])
        near = [0 < j < p and reuse and errors[j - 1] <= e for j in range(p + 1)]
        new = [theta[j] if near[j] else states[j].theta for j in range(p + 1)]
        kept = [drifts[j] if near[j] and j > skip else None for j in range(p + 1)][skip:] + [None] * skip
        state, tau, k = states[skip], tau + skip, k + 1
        theta = [state.theta, *new[skip + 1:], *predict(states[p], skip)]
        e, p = rule(errors, e), min(p, T - tau)
        yield tau, k, e, errors, state.theta.flat


PLAIN = SGD(LAYOUT, lr=0.02)
ITERATIONS = {  # what runs, and whether the plain loop reuses drifts and predicts to be the same
    "paper": (algorithm.propel, False, False),
    "pipelined as the paper": (partial(pipelined.propel, reuse=False), False, False),
    "reuse": (pipelined.propel, True, False),
    "prediction": (partial(pipelined.propel, reuse=False, predict=PLAIN.predict), False, True),
    "reuse and prediction": (partial(pipelined.propel, predict=PLAIN.predict), True, True),
}


@pytest.mark.parametrize("name", ITERATIONS)
@pytest.mark.parametrize("p", [1, 4, 7])
@pytest.mark.parametrize("e", [0.0, 1e-4, 3e-3])
def test_every_iteration_is_that_of_a_plain_loop(name, p, e):
    """Position, threshold, errors and theta, with the mean and the median; e = 0 is held fixed."""
    propel, reuse, predicted = ITERATIONS[name]
    for aggregate, M in (("mean", fmean), ("median", median)):
        rule = threshold.adaptive(0.9, aggregate) if e else threshold.fixed
        truth = list(naive(PLAIN, swinging, p, e, lambda errors, e: 0.9 * e + 0.1 * M(errors) if e else 0.0, reuse,
                           PLAIN.predict if predicted else copies))
        seen = list(slides(PLAIN, p, rule, e, propel=propel, unit=swinging))
        assert [(window.x.tau, window.k) for window in seen] == [(tau, k) for tau, k, *_ in truth]
        assert all(torch.equal(window.x.theta.flat, flat) for window, (*_, flat) in zip(seen, truth))
        for window, (_, _, e_next, errors, _) in zip(seen, truth):
            assert window.e == pytest.approx(e_next, rel=1e-4) and window.errors == pytest.approx(errors, rel=1e-4, abs=1e-12)
        if e and p > 1:
            assert len({window.stride for window in seen}) > 1  # the threshold decides


def test_algorithm_2_evaluates_every_slot_anew_in_each_iteration():
    """Evaluations are p an iteration, fewer at the horizon alone; reuse saves some at the same threshold."""
    counts = {}
    for name in ("paper", "reuse"):
        asked = []
        seen = list(slides(PLAIN, 7, threshold.fixed, 3e-3, propel=ITERATIONS[name][0],
                           unit=lambda theta, tau: asked.append(tau) or swinging(theta, tau)))
        counts[name] = len(asked), sum(min(7, T - (window.x.tau - window.stride)) for window in seen)
    assert counts["paper"][0] == counts["paper"][1] and counts["reuse"][0] < counts["reuse"][1]


def test_algorithm_2_waits_for_the_whole_window_before_the_rollout():
    """The pipelined form has handed out the first new step before the last drift of the window is used."""
    def order(propel):
        told = []

        def unit(theta, tau):
            told.append(("begin", tau))
            return SimpleNamespace(result=lambda: told.append(("end", tau)) or drift(theta, tau))

        rollout = Rollout(OPTIMISERS[0], refresh)
        next(propel(Window(rollout.start(zero()), (), 0.0), unit, rollout, p=3, T=T, threshold=threshold.fixed))
        return told
    begun, ended = [("begin", 0), ("begin", 1), ("begin", 2)], [("end", 0), ("end", 1), ("end", 2)]
    assert order(algorithm.propel) == begun + ended
    assert order(pipelined.propel)[:5] == [*begun, ("end", 0), ("begin", 1)]


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda optimiser: type(optimiser).__name__)
@pytest.mark.parametrize("p", [1, 3, 7, 15, 100])
@pytest.mark.parametrize("iteration", ["paper", "copies", "momentum"])
def test_threshold_zero_gives_the_bits_of_the_sequential_method_at_every_slide(optimiser, p, iteration):
    path = sequential(optimiser)
    keys = {"paper": {"propel": algorithm.propel}, "copies": {}, "momentum": {"predict": optimiser.predict}}[iteration]
    seen = [window for window in slides(optimiser, p, **keys)]
    assert all(torch.equal(window.x.theta.flat, path[window.x.tau]) for window in seen)
    assert seen[-1].x.tau == T and sum(window.stride for window in seen) == T and seen[-1].k <= T


def test_a_window_of_one_is_the_sequential_method_whatever_the_threshold():
    optimiser = OPTIMISERS[0]
    last = list(slides(optimiser, 1, threshold.relative(0.9, 10.0)))[-1]
    assert torch.equal(last.x.theta.flat, sequential(optimiser)[-1]) and last.k == T


def test_scalars_are_those_of_the_accepted_steps_in_order():
    told = [step["tau"] for window in slides(OPTIMISERS[0], 7, threshold.relative(0.9, 10.0)) for step in window.scalars]
    assert told == list(range(T))


def test_a_looser_threshold_needs_fewer_iterations_and_stays_near():
    optimiser = OPTIMISERS[0]
    exact = sequential(optimiser)[-1]
    counts, errors = [], []
    for factor in (0.0, 0.1, 10.0):
        last = list(slides(optimiser, 7, threshold.relative(0.9, factor), predict=optimiser.predict))[-1]
        counts.append(last.k)
        errors.append(float((last.x.theta.flat - exact)[:D].square().mean()))
    assert counts[0] > counts[1] > counts[2] and errors[0] == 0.0
    assert errors[2] < 0.01 * float(exact[:D].square().mean())  # 1 % of theta's own size: the same solution


@pytest.mark.parametrize("split", [1, 4, 9])
@pytest.mark.parametrize("name", ["paper", "reuse and prediction"])
def test_a_window_that_is_saved_and_opened_anew_goes_on_with_the_same_bits(split, name):
    """Guesses are the points where s is evaluated: that is all there is to remember, also at a loose threshold."""
    optimiser, propel = OPTIMISERS[0], ITERATIONS[name][0]
    rule = threshold.relative(0.9, 10.0)
    whole = list(slides(optimiser, 7, rule, propel=propel))
    middle = list(itertools.islice(slides(optimiser, 7, rule, propel=propel), split))[-1]
    rest = list(slides(optimiser, 7, rule, propel=propel, window=middle))
    assert torch.equal(rest[-1].x.theta.flat, whole[-1].x.theta.flat)
    assert [window.stride for window in rest] == [window.stride for window in whole[split:]]


@pytest.mark.parametrize("name", ["paper", "reuse and prediction"])
def test_a_run_interrupted_at_any_wait_goes_on_with_the_same_bits_from_the_window_it_has(name):
    """Whoever keeps windows may drop the guesses of one when the drifts of the next iteration are gathered, not before."""
    optimiser, propel = PLAIN, ITERATIONS[name][0]
    whole = list(slides(optimiser, 5, threshold.fixed, 3e-3, propel=propel, unit=swinging))
    for waits in range(40):
        asked = iter([False] * waits + [True])
        rollout = Rollout(optimiser, refresh)
        held = [fit(Window(rollout.start(zero()), (), 3e-3), 5, T, PLAIN.predict if "prediction" in name else copies)]

        def gathered():
            held[0] = replace(held[0], guess=())
        with pytest.raises(Preempted):
            for held[0] in propel(held[0], Serial(swinging, lambda: next(asked)), rollout, p=5, T=T,
                                  threshold=threshold.fixed, gathered=gathered):
                pass
        assert held[0].guess
        rest = list(slides(optimiser, 5, threshold.fixed, window=held[0], propel=propel, unit=swinging))
        assert [(window.x.tau, window.k, window.e) for window in rest] == [
            (window.x.tau, window.k, window.e) for window in whole[-len(rest):]]
        assert torch.equal(rest[-1].x.theta.flat, whole[-1].x.theta.flat)


class Counted:
    """Drifts given as numbers: theta moves by -1 * drift; what was evaluated, and where, is noted."""

    def __init__(self, moves):
        self.moves, self.asked = moves, []

    def __call__(self, theta, tau):
        self.asked.append((float(theta.flat[0]), tau))
        return Drift(torch.tensor([self.moves[tau]]), {})


def test_strides_and_evaluations_of_a_hand_made_window():
    """theta_tau = -(moves before tau), one number, drifts that do not depend on theta, p = 3, e = 1.

    First iteration from theta = 0 with copies: rolled out 0.5, 2.5, 5.5 away; errors 0.25, 6.25, 30.25 (squares). The first
    is within e = 1, the second not: stride 2. Step 2 is evaluated anew at -2.5; step 3 was not in the window before.
    """
    layout = Layout.of([("x", (1,), "x")])
    unit = Counted([0.5, 2.0, 3.0, 0.1, 0.1, 0.1])
    rollout = Rollout(SGD(layout, lr=1.0), lambda theta, tau: theta)
    window = Window(rollout.start(Theta(torch.zeros(1), layout)), (), 1.0)
    slide = pipelined.propel(window, Serial(unit, lambda: False), rollout, p=3, T=6, threshold=threshold.fixed)

    first = next(slide)
    assert first.errors == (0.25, 6.25, 30.25) and first.stride == 2 and first.x.tau == 2
    assert float(first.x.theta.flat) == -2.5
    assert [float(guess.flat) for guess in first.guess] == [-5.5, -5.5, -5.5]
    second = next(slide)  # drifts 3.0, 0.1, 0.1: rolled -5.5, -5.6, -5.7; errors 0, 0.01, 0.04: all within e
    assert second.errors == pytest.approx((0.0, 0.01, 0.04), abs=1e-6) and second.stride == 3 and second.x.tau == 5
    last = next(slide)
    assert last.x.tau == 6 and float(last.x.theta.flat) == pytest.approx(-5.8)
    # Step 1 was evaluated at its guess 0 and kept, as 0.25 <= e; step 5 opened by the slide starts exact.
    assert [tau for _, tau in unit.asked] == [0, 1, 2, 2, 3, 4, 5]
    assert next(slide, None) is None


def test_distance_sees_every_bit_and_only_trained_numbers():
    a = zero()
    assert distance(a, a) == 0.0 and distance(a, zero()) == 0.0
    for index in (0, D - 1, D, D + RIDING - 1):
        flat = a.flat.clone()
        flat[index] = 1e-40  # its square is no float
        assert 0.0 < distance(a, Theta(flat, LAYOUT)) < 1e-300
    moved = Theta(a.flat + torch.cat([torch.full((D,), 2.0), torch.full((RIDING,), 9.0)]), LAYOUT)
    assert distance(a, moved) == pytest.approx(4.0)
    big = Layout.of([("x", (700_001,), "x")])
    x, y = (Theta(normal(Streams(0, i)("x"), 700_001), big) for i in range(2))
    assert distance(x, y) == pytest.approx(float((x.flat - y.flat).double().square().mean()), rel=1e-5)


def test_groups_left_out_count_for_identity_alone():
    a, apart = zero(), ("slow",)
    fast, slow = LAYOUT.groups["fast"], LAYOUT.groups["slow"]
    both, hidden = a.flat.clone(), a.flat.clone()
    both[fast], both[slow], hidden[slow] = 2.0, 7.0, 7.0
    assert distance(a, Theta(both, LAYOUT), apart) == pytest.approx(4.0)
    assert distance(a, Theta(both, LAYOUT)) == pytest.approx((200 * 4.0 + 100 * 49.0) / 300)
    assert 0.0 < distance(a, Theta(hidden, LAYOUT), apart) < 1e-300 and distance(a, zero(), apart) == 0.0
    path, d = sequential(OPTIMISERS[0]), partial(distance, without=apart)
    for propel in (algorithm.propel, pipelined.propel):
        seen = slides(OPTIMISERS[0], 7, propel=propel, d=d)
        assert all(torch.equal(window.x.theta.flat, path[window.x.tau]) for window in seen)


def test_fit_keeps_extends_and_cuts_guesses():
    x = State(0, zero(), {})
    guesses = tuple(Theta(torch.full((D + RIDING,), float(i)), LAYOUT) for i in (1, 2, 3))
    window = Window(x, guesses, 0.0)
    assert fit(window, 2, T).guess == guesses[:2]
    longer = fit(window, 5, T).guess
    assert longer[:3] == guesses and all(torch.equal(theta.flat, guesses[-1].flat) for theta in longer[3:]) and len(longer) == 5
    assert len(fit(window, 5, 2).guess) == 2


def test_threshold_rules():
    errors = [4.0, 1.0, 3.0, 9.0]
    assert threshold.fixed(7.0, 3, errors, 1.0) == 7.0
    assert threshold.adaptive(0.9, "median")(1.0, 3, errors, 0.0) == pytest.approx(0.9 + 0.1 * median(errors))
    assert threshold.adaptive(0.5, "mean")(1.0, 3, errors, 0.0) == pytest.approx(0.5 + 0.5 * 17 / 4)
    assert threshold.adaptive(0.0, "middle")(1.0, 3, errors, 0.0) == 3.0  # the slot in the middle, not the median
    assert threshold.relative(0.9, 10.0)(0.0, 0, errors, 2.0) == 20.0
    assert threshold.relative(0.9, 10.0)(20.0, 1, errors, 1.0) == pytest.approx(0.9 * 20 + 0.1 * 10)
