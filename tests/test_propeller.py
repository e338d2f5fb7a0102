"""Generalized Picard iteration: at e = 0 it is the sequential method to the last bit; strides follow the errors."""

import itertools
from statistics import median

import pytest
import torch

from mpiprop.core.steps import Streams, normal
from mpiprop.core.theta import Drift, Layout, State, Theta
from mpiprop.picard import threshold
from mpiprop.picard.propeller import Window, copies, distance, fit, propel
from mpiprop.picard.rollout import SGD, Adam, AdamW, Adan, Rollout
from mpiprop.transport.base import Serial

D, RIDING, T = 300, 10, 60
LAYOUT = Layout.of([("a", (200,), "fast"), ("b", (100,), "slow")], [("grid", (RIDING,))])
CURVATURE, CENTRE = torch.linspace(0.05, 2.0, D), normal(Streams(1, 0)("centre"), D)
OPTIMISERS = [Adam(LAYOUT, lr={"fast": 0.03, "slow": [[0, 0.01], [40, 0.001]]}), AdamW(LAYOUT, lr=0.02),
              Adan(LAYOUT, lr=0.02), SGD(LAYOUT, lr=0.02, momentum=0.9)]


def drift(theta: Theta, tau: int) -> Drift:
    """A noisy gradient that also reads the riding state, so that a stale one shows."""
    noise = normal(Streams(3, tau)("noise"), D)
    return Drift(CURVATURE * torch.tanh(theta.trained - CENTRE) + 0.5 * noise + 0.01 * theta.flat[D:].sum(), {"tau": tau})


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


def slides(optimiser, p, rule=threshold.fixed, e=0.0, predict=copies, window=None):
    rollout = Rollout(optimiser, refresh)
    window = window or Window(rollout.start(zero()), (), e)
    return propel(window, Serial(drift, lambda: False), rollout, p=p, T=T, threshold=rule, predict=predict)


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda optimiser: type(optimiser).__name__)
@pytest.mark.parametrize("p", [1, 3, 7, 15, 100])
@pytest.mark.parametrize("guess", ["copies", "momentum"])
def test_threshold_zero_gives_the_bits_of_the_sequential_method_at_every_slide(optimiser, p, guess):
    path = sequential(optimiser)
    predict = optimiser.predict if guess == "momentum" else copies
    seen = [window for window in slides(optimiser, p, predict=predict)]
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
def test_a_window_that_is_saved_and_opened_anew_goes_on_with_the_same_bits(split):
    """Guesses are the points where s is evaluated: that is all there is to remember, also at a loose threshold."""
    optimiser = OPTIMISERS[0]
    rule = threshold.relative(0.9, 10.0)
    whole = list(slides(optimiser, 7, rule, predict=optimiser.predict))
    middle = list(itertools.islice(slides(optimiser, 7, rule, predict=optimiser.predict), split))[-1]
    rest = list(slides(optimiser, 7, rule, predict=optimiser.predict, window=middle))
    assert torch.equal(rest[-1].x.theta.flat, whole[-1].x.theta.flat)
    assert [window.stride for window in rest] == [window.stride for window in whole[split:]]


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
    slide = propel(window, Serial(unit, lambda: False), rollout, p=3, T=6, threshold=threshold.fixed)

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
