"""Clouds of Gaussians whose number changes: lineage, the operations on states, and Picard iteration across them, to the bit."""

import itertools
from dataclasses import replace
from math import log

import pytest
import torch
from plyfile import PlyData

from mpiprop.run import checkpoint
from mpiprop.run.checkpoint import Checkpoint
from mpiprop.core import ancestry
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.core.theta import Drift, Layout, State, Theta
from mpiprop.optim.optimisers import Adam
from mpiprop.optim.rollout import Rollout
from mpiprop.picard.window import distance
from mpiprop.shapes.clouds.densify import MOVES, VIEWS, Densify, Rules, grown, pruned, reset, values
from mpiprop.shapes.clouds.gaussians import ROWS, Gaussians, spacing
from mpiprop.transport.serial import Serial
from mpiprop.transport.sharded import Sharded

from clouds import stage

RULES = Rules(every=3, first=0, until=100, gradient=1.0, size=0.2, most=1000, radius=9.0, least_opacity=0.0, largest=0.0,
              reset_every=7, reset_opacity=0.2, cross=True)
WIDTHS = {"position": (3,), "f_dc": (1, 3), "f_rest": (0, 3), "scale": (3,), "rotation": (4,), "opacity": (1,)}


def state(N: int, chosen=(), large=(), tau: int = 3) -> State:
    """N Gaussians of random numbers with averages, of whom those `chosen` have a large gradient and those `large` are large."""
    layout = Layout.of([(f"geometry.{name}", (N, *width), f"geometry.{name}") for name, width in WIDTHS.items()]
                       + [("background.colour", (5,), "background.colour")],
                       per_point={f"geometry.{name}" for name in WIDTHS})
    theta = Theta(normal(Streams(1, 0)("theta"), layout.L), layout, ancestry.roots(N))
    values(theta, "scale")[:] = log(0.1)
    values(theta, "scale")[list(large)] = log(0.4)
    moves = torch.zeros(N)
    moves[list(chosen)] = 5.0
    m, v = normal(Streams(2, 0)("m"), layout.D), uniform(Streams(2, 0)("v"), layout.D)
    return State(tau, theta, {"m": m, "v": v}, {MOVES: moves, VIEWS: torch.full((N,), 2.0)})


def test_clones_and_splits_keep_their_lineage():
    """20 Gaussians, {1, 2} cloned and {3, 7, 11} split: each is read from itself, or from the one that it was."""
    x = state(20, chosen=(1, 2, 3, 7, 11), large=(3, 7, 11, 15))
    y = grown(x, RULES, Streams(0, 3))
    expected = [i for i in range(20) if i not in (3, 7, 11)] + [1, 2] + 2 * [3, 7, 11]
    assert x.theta.rows(y.theta).tolist() == expected and y.theta.layout.N == 25
    assert len(set(y.theta.ancestry[:, 0].tolist())) == 25
    assert torch.equal(values(y.theta, "opacity"), values(x.theta, "opacity")[expected])
    assert torch.equal(values(y.theta, "position")[:19], values(x.theta, "position")[expected[:19]])
    assert torch.equal(values(y.theta, "scale")[19:], values(x.theta, "scale")[expected[19:]] - log(1.6))
    assert torch.equal(y.theta.flat[-5:], x.theta.flat[-5:]) and all(
        len(total) == 25 and not total.any() for total in y.statistics.values())
    for slot in ("m", "v"):
        held = Theta(y.slots[slot], y.theta.layout)
        before = Theta(x.slots[slot], x.theta.layout)
        assert torch.equal(values(held, "rotation")[:17], values(before, "rotation")[expected[:17]])
        assert not any(values(held, name)[17:].any() for name in ROWS)
        assert torch.equal(held.flat[-5:], before.flat[-5:])


def test_children_lie_about_their_parent_as_it_lay_in_space():
    """Offsets of many children have the covariance R S S R' of the parent; each parent's are its own, whatever else splits."""
    x = state(2000, chosen=range(2000), large=range(2000))
    scale = torch.tensor([0.5, 0.25, 0.05])
    values(x.theta, "scale")[:] = scale.log()
    values(x.theta, "rotation")[:] = torch.tensor([2.0, 0.0, 0.0, 2.0])  # x to y, of no unit length
    rules = replace(RULES, most=9999)
    y = grown(x, rules, Streams(0, 3))
    moved = values(y.theta, "position") - values(x.theta, "position").repeat(2, 1)
    assert (moved.T.cov() - torch.diag(scale[[1, 0, 2]] ** 2)).abs().max() < 0.01  # 4000 draws: 0.25 sqrt(2 / 4000) = 0.006
    alone = replace(x, statistics=state(2000, chosen=(7,)).statistics)
    one = grown(alone, rules, Streams(0, 3))
    assert torch.equal(values(one.theta, "position")[-2:], values(y.theta, "position")[[7, 2007]])
    assert torch.equal(one.theta.ancestry[-2:, 0], y.theta.ancestry[[7, 2007], 0])


@pytest.mark.parametrize("large", [(), (4,)])
def test_exactly_one_may_be_chosen(large):
    x = state(9, chosen=(4,), large=large)
    y = grown(x, RULES, Streams(0, 3))
    assert y.theta.layout.N == 10 and (x.theta.rows(y.theta) == 4).sum() == 2


def test_as_many_as_before_may_be_others():
    """Two rollouts of one step clone one Gaussian each, but not the same one: equal numbers are no identity."""
    a, b = (grown(state(5, chosen=(i,)), RULES, Streams(0, 3)) for i in (1, 3))
    assert a.theta.layout == b.theta.layout and torch.equal(a.theta.ancestry[:5], b.theta.ancestry[:5])
    assert a.theta.rows(b.theta).tolist() == [0, 1, 2, 3, 4, 3] and b.theta.rows(a.theta).tolist() == [0, 1, 2, 3, 4, 1]
    grad, seen = torch.arange(float(a.theta.layout.D)), torch.arange(6.0)
    read = Drift(grad, statistics={VIEWS: seen}).read_as(a.theta, b.theta)
    assert torch.equal(read.grad[:18].view(6, 3), grad[:18].view(6, 3)[[0, 1, 2, 3, 4, 3]])
    assert torch.equal(read.grad[-5:], grad[-5:])  # no points' numbers
    assert read.statistics[VIEWS].tolist() == [0, 1, 2, 3, 4, 3]
    assert distance(a.theta, b.theta) > 0 and distance(a.theta, a.theta) == 0
    same = Theta(a.theta.flat.clone(), a.theta.layout, b.theta.ancestry)
    assert 0 < distance(a.theta, same)  # the same numbers of others


def test_who_is_gone_tells_nothing_and_who_descends_tells_what_it_can():
    x = state(6, chosen=(2,), large=(2,))
    values(x.theta, "opacity")[:, 0] = torch.tensor([3.0, -3.0, 3.0, 3.0, 3.0, 3.0])
    split, thin = grown(x, RULES, Streams(0, 3)), pruned(x, 0.5, 0.0, 9.0)
    assert thin.theta.layout.N == 5 and thin.theta.rows(x.theta).tolist() == [0, -1, 1, 2, 3, 4]
    assert Drift(torch.ones(thin.theta.layout.D)).read_as(thin.theta, x.theta).grad[:18].view(6, 3)[:, 0].tolist() == [
        1, 0, 1, 1, 1, 1]
    assert split.theta.rows(x.theta).tolist() == [0, 1, 5, 2, 3, 4]  # the parent from its first child
    assert torch.equal(thin.theta.read_as(x.theta).flat, x.theta.flat)


def test_lineage_equals_a_search_through_the_family():
    """Random families over six rounds, against a walk from parent to parent."""
    rng = Streams(5, 0)
    clouds, parent = [ancestry.roots(12)], {i: None for i in range(12)}
    for tau in range(1, 7):
        ids = clouds[-1 if tau % 3 else 0]
        chosen = (uniform(rng(f"chosen{tau}"), len(ids)) < 0.4).nonzero()[:, 0]
        gone = uniform(rng(f"gone{tau}"), len(ids)) < 0.2
        fresh = [ancestry.born(ids[chosen], tau, child) for child in (1, 2)]
        for each in fresh:
            parent |= dict(zip(each[:, 0].tolist(), ids[chosen, 0].tolist()))
        clouds.append(ancestry.joined([ids[~gone], *fresh]))

    def line(one):
        while one is not None:
            yield one
            one = parent[one]

    for wanted, there in itertools.product(clouds, clouds):
        own, expected = there[:, 0].tolist(), []
        lines = [list(line(one)) for one in own]
        for one in wanted[:, 0].tolist():
            found = [own.index(ancestor) for ancestor in line(one) if ancestor in own]
            depth = max(map(len, lines))
            cousins = [i for b in range(depth) for ancestor in line(one) for i, each in enumerate(lines)
                       if b < len(each) and each[b] == ancestor]
            expected.append((found + cousins + [-1])[0])
        assert ancestry.rows(wanted, there).tolist() == expected


def test_pruning_keeps_one_and_a_reset_clears_averages_of_opacities_alone():
    x = state(8)
    assert pruned(x, 1.0, 0.0, 9.0).theta.layout.N == 1
    wide = state(8, large=(3,))
    assert pruned(wide, 0.0, 0.3, 9.0).theta.ancestry[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7]
    far = values(x.theta, "position").abs().amax(1) > 1
    assert far.any() and torch.equal(pruned(x, 0.0, 0.0, 1.0).theta.ancestry, x.theta.ancestry[~far])
    kept = x.theta.flat.clone()
    y = reset(x, 0.2)
    assert values(y.theta, "opacity").sigmoid().max() <= 0.2 + 1e-6 and torch.equal(x.theta.flat, kept)
    for slot in ("m", "v"):
        held, before = Theta(y.slots[slot], y.theta.layout), Theta(x.slots[slot], x.theta.layout)
        assert not values(held, "opacity").any() and torch.equal(values(held, "scale"), values(before, "scale"))
    assert y.theta.ancestry is not x.theta.ancestry  # a step that no optimiser made


def test_the_rollout_equals_a_loop_over_lists_of_tensors_and_torchs_adam():
    """Nine steps with three rounds of clones, splits and pruning and a reset; averages are kept in torch's own optimiser,
    which is made anew by hand wherever rows change, as the published code does it."""
    rules = replace(RULES, least_opacity=0.17, gradient=0.9, size=0.6)
    x = state(30, tau=0)
    values(x.theta, "scale")[:] = uniform(Streams(4, 0)("s"), 30, 3, lo=-3.0, hi=0.0)
    structure = Densify(rules, lambda tau: Streams(0, tau))
    rollout = Rollout(Adam(x.theta.layout, lr=0.05, eps=1e-15), lambda theta, tau: theta, structure)
    x = rollout.start(x.theta)

    own = {name: values(x.theta, name).double().clone().requires_grad_() for name in ROWS}
    ids, total, count = list(range(30)), torch.zeros(30).double(), torch.zeros(30).double()
    optimiser = torch.optim.Adam(list(own.values()), lr=0.05, betas=(0.9, 0.99), eps=1e-15)
    parents: dict[int, int] = {}
    changes = 0

    def gradient(one: int, tau: int) -> torch.Tensor:
        return normal(Streams(one % 999983, tau)("g"), 14)

    def rebuilt(rows: list[int], old: int, edit=None) -> None:
        nonlocal own, optimiser, total, count
        moments = {name: optimiser.state[own[name]] for name in ROWS}
        own = {name: own[name].detach()[rows].clone() for name in ROWS}
        if edit:
            edit(own)
        for tensor in own.values():
            tensor.requires_grad_()
        optimiser = torch.optim.Adam(list(own.values()), lr=0.05, betas=(0.9, 0.99), eps=1e-15)
        for name in ROWS:
            m, v = (moments[name][key][rows].clone() for key in ("exp_avg", "exp_avg_sq"))
            m[old:], v[old:] = 0, 0
            optimiser.state[own[name]] = {"step": moments[name]["step"], "exp_avg": m, "exp_avg_sq": v}
        total, count = total[rows].clone(), count[rows].clone()

    for tau in range(9):
        flat = torch.stack([gradient(one, tau) for one in x.theta.ancestry[:, 0].tolist()])
        grad = torch.cat([*(part.reshape(-1) for part in flat.split([3, 3, 0, 3, 4, 1], 1)), torch.zeros(5)])
        x = rollout(Drift(grad, statistics={MOVES: flat[:, 0].abs(), VIEWS: torch.ones(len(flat))}), x)

        flat = torch.stack([gradient(one, tau) for one in ids]).double()
        for name, part in zip(ROWS, flat.split([3, 3, 0, 3, 4, 1], 1)):
            own[name].grad = part.view_as(own[name]).clone()
        optimiser.step()
        total, count, done = total + flat[:, 0].abs(), count + 1, tau + 1
        if done % 3 == 0:
            mean = (total / count).tolist()
            size = own["scale"].detach().exp().amax(1).tolist()
            clones = [i for i in range(len(ids)) if mean[i] >= 0.9 and size[i] <= 0.6]
            splits = [i for i in range(len(ids)) if mean[i] >= 0.9 and size[i] > 0.6]
            stay = [i for i in range(len(ids)) if i not in splits]
            rows = stay + clones + splits + splits

            def divide(tensors, splits=splits, first=len(stay) + len(clones), done=done, ids=list(ids)):
                for n, i in enumerate(splits):
                    w, a, b, c = (tensors["rotation"][first + n] / tensors["rotation"][first + n].norm()).tolist()
                    R = torch.tensor([[1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
                                      [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
                                      [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)]]).double()
                    draws = normal(Streams(0, done)(f"split/{ids[i]}"), 2, 3).double()
                    for child in range(2):
                        row = first + child * len(splits) + n
                        tensors["position"][row] += R @ (tensors["scale"][row].exp() * draws[child])
                        tensors["scale"][row] -= log(1.6)
            names = x.theta.ancestry[:, 0].tolist()  # ids of new ones are the program's to choose; who is who is checked here
            ids_before, changes = list(ids), changes + bool(clones and splits)
            rebuilt(rows, len(stay), divide)
            total, count = torch.zeros(len(rows)).double(), torch.zeros(len(rows)).double()
            kept = (own["opacity"].detach()[:, 0].sigmoid() >= 0.17).nonzero()[:, 0].tolist()
            rebuilt(kept, len(kept))
            parents |= {new: ids_before[rows[i]] for new, i in zip(names, kept) if i >= len(stay)}
            assert [new for new, i in zip(names, kept) if i < len(stay)] == [ids_before[rows[i]] for i in kept if i < len(stay)]
            ids = names
        if done == 7:
            with torch.no_grad():
                own["opacity"].clamp_(max=log(0.2 / 0.8))
            for key in ("exp_avg", "exp_avg_sq"):
                optimiser.state[own["opacity"]][key].zero_()
        assert x.theta.layout.N == len(ids)
        for name in ROWS:
            assert torch.allclose(values(x.theta, name).double(), own[name].detach(), atol=1e-5), (tau, name)
    assert changes == 3 and x.theta.ancestry[:, 1].tolist() == [parents.get(one, -1) for one in ids]


def slides(one, window=None):
    unit, rollout = one.unit(one.embeddings()), one.rollout()
    window = window or one.open_window(rollout, one.scene.theta())
    for end in one.scene.shape.ends(one.T):
        for window in one.propel(rollout)(window, Serial(unit, lambda: False), rollout, T=end):
            yield window


@pytest.fixture(scope="module")
def path() -> list[State]:
    """The truth: x_0 .. x_T of an ordinary loop."""
    one = stage()
    unit, rollout = one.unit(one.embeddings()), one.rollout()
    states = [rollout.start(one.scene.theta())]
    for tau in range(one.T):
        drift = unit(states[-1].theta, tau)
        states.append(rollout(drift, states[-1].copy()))
    return states


def same(a: State, b: State) -> bool:
    return (a.tau == b.tau and torch.equal(a.theta.flat, b.theta.flat) and torch.equal(a.theta.ancestry, b.theta.ancestry)
            and all(torch.equal(a.slots[name], b.slots[name]) for name in b.slots)
            and all(torch.equal(a.statistics[name], b.statistics[name]) for name in (MOVES, VIEWS)))


def test_the_truth_clones_splits_prunes_and_resets(path):
    born = [set(b.theta.ancestry[:, 0].tolist()) - set(a.theta.ancestry[:, 0].tolist()) for a, b in zip(path, path[1:])]
    gone = [set(a.theta.ancestry[:, 0].tolist()) - set(b.theta.ancestry[:, 0].tolist()) for a, b in zip(path, path[1:])]
    changed = [a.tau + 1 for a, b in zip(path, path[1:]) if a.theta.ancestry is not b.theta.ancestry]
    assert changed == [6, 12, 15, 18, 24] and all(born[tau - 1] for tau in (6, 12)) and sum(map(len, gone)) > 20
    split = {one for step in gone for one in step} & {int(one) for x in path for one in x.theta.ancestry[:, 1:2].flatten()}
    assert split and values(path[15].theta, "opacity").sigmoid().max() <= 0.3 + 1e-6


@pytest.mark.parametrize("p, cross, preset", [(3, True, "default"), (7, True, "default"), (7, False, "default"),
                                              (4, True, "paper")])
def test_threshold_zero_gives_the_bits_of_the_sequential_method_across_changes(path, p, cross, preset):
    seen = list(slides(stage(preset=preset, size=p, threshold=0, cross=cross)))
    assert all(same(window.x, path[window.x.tau]) for window in seen) and seen[-1].x.tau == 30
    beyond = [change for window in seen for change in (6, 12, 15, 18, 24)
              if window.x.tau < change < window.x.tau + len(window.guess)]
    assert bool(beyond) == cross


def test_windows_cross_changes_at_the_default_threshold(path):
    crossing, ending = (list(slides(stage(size=7, cross=cross))) for cross in (True, False))
    assert len(crossing) < len(ending) < 30
    passed = {change for window in crossing for change in (6, 12, 18, 24)
              if window.x.tau - window.stride < change < window.x.tau}
    assert passed  # accepted in the middle of a window


@pytest.mark.parametrize("split, keys", [(1, {"size": 7}), (2, {"size": 7}), (3, {"size": 7}),
                                         (2, {"size": 7, "preset": "paper", "threshold": 5e-4})])
def test_a_window_saved_across_a_change_goes_on_with_the_same_bits(tmp_path, split, keys):
    whole = list(slides(stage(**keys)))
    middle = whole[split]
    checkpoint.save(tmp_path / "window.h5", Checkpoint(middle, "splats", 0, ""))
    found = checkpoint.load(tmp_path / "window.h5").window
    assert same(found.x, middle.x)
    for a, b in zip(found.guess, middle.guess, strict=True):
        assert torch.equal(a.flat, b.flat) and torch.equal(a.ancestry, b.ancestry) and a.layout == b.layout
    rest = list(slides(stage(**keys), replace(found, stride=middle.stride)))
    assert [window.x.tau for window in rest] == [window.x.tau for window in whole[split + 1:]]
    assert all(same(a.x, b.x) for a, b in zip(rest, whole[split + 1:]))


def test_parts_of_a_batch_add_up_with_what_they_measure():
    """Statistics are of each view's own loss: those of a batch are the sums of those of its views alone."""
    one = stage()
    unit, theta = one.unit(one.embeddings()), one.scene.theta()
    whole, parts = unit(theta, 3).clone(), Sharded(unit, 2)(theta, 3)
    assert (parts.grad - whole.grad).norm() < 1e-4 * whole.grad.norm()
    assert whole.statistics[MOVES].max() > 0 and set(whole.statistics[VIEWS].tolist()) <= {0.0, 1.0, 2.0}
    assert all(torch.allclose(total, parts.statistics[name], rtol=1e-4) for name, total in whole.statistics.items())


def test_the_scene_takes_any_number_of_points(path):
    """A gradient is a function of theta alone, whatever was loaded before."""
    one = stage()
    unit = one.unit(one.embeddings())
    first = unit(path[0].theta, 4).grad.clone()
    later = unit(path[20].theta, 4).grad.clone()
    assert len(later) != len(first)
    assert torch.equal(unit(path[0].theta, 4).grad, first) and torch.equal(unit(path[20].theta, 4).grad, later)


def test_a_fresh_cloud_is_that_of_dreamgaussian():
    shape = Gaussians(Streams(0, 0), number=500)
    splats = shape.splats()
    inside = splats.means.norm(dim=1)
    assert inside.max() <= 0.5 and (inside < 0.25).float().mean() == pytest.approx(1 / 8, abs=0.05)
    assert torch.allclose(splats.opacities, torch.tensor(0.1)) and splats.harmonics.shape == (500, 1, 3)
    near = torch.cdist(splats.means, splats.means).sort().values[:, 1:4].square().mean(1).sqrt()
    assert torch.allclose(splats.scales, near[:, None].expand(-1, 3), rtol=1e-3)
    assert float(spacing(torch.zeros(1, 3))) == 1.0


def test_a_cloud_is_written_and_read_in_the_common_layout(tmp_path):
    from mpiprop.io.files import write_cloud

    shape = Gaussians(Streams(3, 0), number=7, degree=1)
    with torch.no_grad():
        for parameter in shape.parameters():
            parameter.copy_(normal(Streams(4, 0)(str(parameter.shape)), *parameter.shape))
    write_cloud(shape.rows(), tmp_path / "cloud.ply")
    vertices = PlyData.read(tmp_path / "cloud.ply")["vertex"]
    assert [p.name for p in vertices.properties] == (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 f_rest_0 f_rest_1 f_rest_2 f_rest_3 f_rest_4 f_rest_5 f_rest_6 f_rest_7 f_rest_8 "
        "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3").split()
    assert vertices["f_rest_4"].tolist() == shape.f_rest[:, 1, 1].tolist()  # the coefficients of red, then green, then blue
    assert vertices["rot_0"].tolist() == shape.rotation[:, 0].tolist()
    assert vertices["y"].tolist() == shape.position[:, 1].tolist()
    again = Gaussians(Streams(0, 0), points=str(tmp_path / "cloud.ply"), degree=1)
    assert all(torch.equal(getattr(again, name), getattr(shape, name)) for name in ROWS)
    with pytest.raises(UserError, match="degree 1; set degree=1"):
        Gaussians(Streams(0, 0), points=str(tmp_path / "cloud.ply"))


def test_any_points_begin_a_cloud(tmp_path):
    columns = "".join(f"property {kind} {name}\n" for kind, names in (("float", "xyz"), ("uchar", ("red", "green", "blue")))
                      for name in names)
    (tmp_path / "p.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 2\n{columns}end_header\n"
                                    "0 0 0 255 0 0\n0.5 0 0 0 0 255\n")
    shape = Gaussians(Streams(0, 0), points=str(tmp_path / "p.ply"), opacity=0.25)
    colour = 0.5 + shape.f_dc[:, 0] * 0.28209479177387814
    assert torch.allclose(colour, torch.tensor([[1.0, 0, 0], [0, 0, 1]]), atol=1e-6)
    assert torch.allclose(shape.splats().scales, torch.tensor(0.5)) and shape.splats().opacities.tolist() == [0.25, 0.25]
    for name, text in (("missing.ply", None), ("bad.ply", "nothing")):
        if text:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            Gaussians(Streams(0, 0), points=str(tmp_path / name))


@pytest.mark.parametrize("keys, told", [({"degree": 4}, "degree: out of range"), ({"number": 0}, "number: out of range")])
def test_a_mistake_in_a_cloud_is_one_line(keys, told):
    with pytest.raises(UserError, match=told):
        stage(**keys)
