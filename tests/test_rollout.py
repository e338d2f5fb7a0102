"""h-dagger: flat optimisers equal torch's own, step by step; groups, schedules; thetas are never changed."""

import pytest
import torch

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Drift, Layout, Theta
from mpiprop.optim.optimisers import SGD, Adam, AdamW, Adan
from mpiprop.optim.rollout import Rollout

D = 1000
LAYOUT = Layout.of([("w", (20, 40), "a"), ("b", (200,), "c")], [("rides", (7,))])


def start() -> Theta:
    return Theta(normal(Streams(0, 0)("theta"), D + 7), LAYOUT)


def gradient(theta: torch.Tensor, tau: int) -> torch.Tensor:
    return torch.sin(3 * theta) + normal(Streams(1, tau)("g"), D)


def rolled(optimiser, steps: int):
    x = optimiser.start(start())
    for tau in range(steps):
        x = optimiser(Drift(gradient(x.theta.trained, tau)), x)
    return x


@pytest.mark.parametrize("ours, theirs", [
    (Adam(LAYOUT, lr=0.02, betas=(0.8, 0.95), eps=1e-6), dict(cls=torch.optim.Adam, lr=0.02, betas=(0.8, 0.95), eps=1e-6)),
    (Adam(LAYOUT, lr=0.02, eps=1e-15, weight_decay=0.1),
     dict(cls=torch.optim.Adam, lr=0.02, betas=(0.9, 0.99), eps=1e-15, weight_decay=0.1)),
    (AdamW(LAYOUT, lr=0.02, eps=1e-8, weight_decay=0.3),
     dict(cls=torch.optim.AdamW, lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.3)),
    (SGD(LAYOUT, lr=0.02, momentum=0.7), dict(cls=torch.optim.SGD, lr=0.02, momentum=0.7)),
], ids=["Adam", "Adam-decay", "AdamW", "SGD"])
def test_equals_torch(ours, theirs):
    parameter = torch.nn.Parameter(start().trained.double())
    optimiser = theirs.pop("cls")([parameter], **theirs)
    for tau in range(50):
        parameter.grad = gradient(parameter.detach().float(), tau).double()
        optimiser.step()
    assert torch.allclose(rolled(ours, 50).theta.trained.double(), parameter.detach(), atol=2e-4)  # float32 against float64


def test_adan_equals_its_published_recurrence():
    """Xie et al. 2022, Algorithm 1 in its authors' form (bias-corrected, proximal decay), number by number in float64."""
    b1, b2, b3, eta, eps, decay = 0.98, 0.92, 0.99, 0.02, 1e-8, 0.05
    theta = start().trained.double()
    m = d = n = previous = torch.zeros(D, dtype=torch.float64)
    for k in range(1, 41):
        g = gradient(theta.float(), k - 1).double()
        difference = g - previous if k > 1 else torch.zeros_like(g)
        m, d = b1 * m + (1 - b1) * g, b2 * d + (1 - b2) * difference
        n = b3 * n + (1 - b3) * (g + b2 * difference) ** 2
        step = (m / (1 - b1 ** k) + b2 * d / (1 - b2 ** k)) / ((n / (1 - b3 ** k)).sqrt() + eps)
        theta, previous = (theta - eta * step) / (1 + eta * decay), g
    assert torch.allclose(rolled(Adan(LAYOUT, lr=eta, weight_decay=decay), 40).theta.trained.double(), theta, atol=2e-4)


def test_groups_have_their_own_schedules_and_left_out_ones_stay():
    x = rolled(Adam(LAYOUT, lr={"a": [[0, 0.0], [10, 0.1]]}), 3)
    before, after = start().flat, x.theta.flat
    assert torch.equal(before[800:], after[800:])  # group c and what rides along
    assert not torch.equal(before[:800], after[:800])
    first = rolled(Adam(LAYOUT, lr={"a": [[0, 0.0], [10, 0.1]]}), 1)
    assert torch.equal(first.theta.flat, before)  # the schedule starts at 0


def test_an_unknown_group_is_named():
    with pytest.raises(UserError, match="no group 'geometri'.*a, c"):
        Adam(LAYOUT, lr={"geometri": 0.1})


def test_thetas_are_values():
    optimiser = Adam(LAYOUT, lr=0.1)
    x = optimiser.start(start())
    kept = x.copy()
    y = optimiser(Drift(gradient(x.theta.trained, 0)), x)
    assert torch.equal(x.theta.flat, start().flat) and not torch.equal(y.theta.flat, x.theta.flat)
    assert float(kept.slots["m"].abs().max()) == 0.0 and float(y.slots["m"].abs().max()) > 0.0


@pytest.mark.parametrize("optimiser", [Adam(LAYOUT, lr=0.01), AdamW(LAYOUT, lr=0.01), Adan(LAYOUT, lr=0.01),
                                       SGD(LAYOUT, lr=0.01, momentum=0.9)], ids=lambda o: type(o).__name__)
def test_predictions_are_right_when_the_gradient_never_changes(optimiser):
    """With a constant gradient the averages settle, and a straight line along them is where the optimiser goes."""
    g = normal(Streams(5, 0)("g"), D)
    x = optimiser.start(start())
    for _ in range(900):
        x = optimiser(Drift(g), x)
    guesses = list(optimiser.predict(x, 3))
    for guess in guesses:
        x = optimiser(Drift(g), x)
        # weight decay (up to 0.0001 * |theta| a step) and the slowest average leave a rest small against the step of 0.01
        assert torch.allclose(guess.flat, x.theta.flat, atol=4e-3)
    assert list(optimiser.predict(x, 0)) == []


def test_the_rollout_renews_what_rides_along_for_the_step_that_begins():
    told = []

    def refresh(theta: Theta, tau: int) -> Theta:
        told.append(tau)
        return theta
    rollout = Rollout(Adam(LAYOUT), refresh)
    x = rollout.start(start())
    x = rollout(Drift(torch.zeros(D)), x)
    assert told == [0, 1] and x.tau == 1


LANES = Layout.of([("w", (100,), "a"), *((f"lora.{lane}", (50,), "lora") for lane in range(3))], [("rides", (7,))], {"lora": 3})


def test_a_step_advances_its_own_lane_alone_by_a_hand_written_adam():
    """Lane tau mod 3, with the moments and the step count that it has for itself; the other group at every step."""
    b1, b2, eps, eta = 0.8, 0.95, 1e-6, 0.02
    optimiser = Adam(LANES, lr=eta, betas=(b1, b2), eps=eps)
    theta = normal(Streams(0, 0)("theta"), 257)
    x = optimiser.start(Theta(theta, LANES))
    truth, m, v, counts = theta[:250].double(), torch.zeros(250).double(), torch.zeros(250).double(), [0, 0, 0, 0]
    for tau in range(20):
        g = torch.sin(3 * x.theta.trained) + normal(Streams(1, tau)("g"), 250)
        kept, before = x.copy(), x.theta
        x = optimiser(Drift(g), x)
        for part, span in ((0, slice(0, 100)), (1 + tau % 3, slice(100 + tau % 3 * 50, 150 + tau % 3 * 50))):
            counts[part] += 1
            m[span] = b1 * m[span] + (1 - b1) * g[span].double()
            v[span] = b2 * v[span] + (1 - b2) * g[span].double() ** 2
            move = m[span] / (1 - b1 ** counts[part]) / ((v[span] / (1 - b2 ** counts[part])).sqrt() + eps)
            truth[span] -= eta * move
        for lane in {0, 1, 2} - {tau % 3}:
            still = slice(100 + 50 * lane, 150 + 50 * lane)
            assert torch.equal(x.theta.flat[still], before.flat[still])
            assert all(torch.equal(x.slots[name][still], kept.slots[name][still]) for name in ("m", "v"))
    assert torch.allclose(x.theta.trained.double(), truth, atol=1e-4)


@pytest.mark.parametrize("optimiser", [Adam(LANES, lr=0.01), AdamW(LANES, lr=0.01, weight_decay=0.0), Adan(LANES, lr=0.01),
                                       SGD(LANES, lr=0.01, momentum=0.9)], ids=lambda o: type(o).__name__)
def test_predictions_move_each_lane_in_its_turn(optimiser):
    """With a constant gradient every guess is where the optimiser goes; the lane whose turn it is moves, no other."""
    g = normal(Streams(5, 0)("g"), 250)
    x = optimiser.start(Theta(normal(Streams(0, 0)("theta"), 257), LANES))
    assert torch.equal(next(optimiser.predict(x, 1)).flat, x.theta.flat)  # nothing is known yet
    for _ in range(2400):
        x = optimiser(Drift(g), x)
    before = x.theta
    for guess in list(optimiser.predict(x, 4)):
        lane = x.tau % 3
        x = optimiser(Drift(g), x)
        assert torch.allclose(guess.flat, x.theta.flat, atol=4e-3)
        moved = (guess.flat != before.flat)[100:250].view(3, 50).any(1)
        assert moved.tolist() == [i == lane for i in range(3)]
        before = guess


def test_turns_go_round_and_layouts_survive_their_text():
    for tau in range(9):
        turns = LANES.turns("lora", tau)
        lane = [(span.start - 100) // 50 for span, _ in turns]
        assert lane[0] == tau % 3 and sorted(lane) == [0, 1, 2] and all(span.stop - span.start == 50 for span, _ in turns)
        assert [count for _, count in turns] == [sum(step % 3 == i for step in range(tau)) for i in lane]
        assert LANES.turns("a", tau) == [(slice(0, 100), tau)]
    assert Layout.from_json(LANES.to_json()) == LANES and Layout.from_json(LAYOUT.to_json()) == LAYOUT
    assert "lanes" not in LAYOUT.to_json()  # the text of a layout without lanes is what it always was
