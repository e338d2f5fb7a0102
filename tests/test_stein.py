"""Control variates: exact values on a mixture of Gaussians, weights that lag, and the same bits however a run is cut."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from mixture import Mixture, Told, sample_of
from stopped import MPI, ended, follow
from torch import Tensor

from mpiprop.conditioning.text import Plain, TextConditions
from mpiprop.core.streams import Streams
from mpiprop.estimators.depth import DPT
from mpiprop.guidance.asd import ASD
from mpiprop.guidance.distillation import Sample
from mpiprop.guidance.queries import answered
from mpiprop.guidance.sds import SDS
from mpiprop.guidance.sjc import SJC
from mpiprop.guidance.stein import Noise, Stein, products, steins
from mpiprop.priors.closed_form import ClosedForm
from mpiprop.views.cameras import Image, orbit

X = torch.tensor([0.3, 0.4], dtype=torch.float64).view(1, 2, 1, 1)


class Known(Stein):
    """A variate whose phi is written down."""

    def __init__(self, **keys) -> None:
        super().__init__(None, **keys)

    def phi(self, x_t: Tensor, sample: Sample) -> Tensor:
        x, y = x_t.flatten(1).unbind(1)
        return 1.2 + 0.5 * torch.tanh(x - 0.5 * y) + 0.3 * torch.sin(y)


class One(Stein):
    """phi = 1."""

    def __init__(self) -> None:
        super().__init__(None)

    def phi(self, x_t: Tensor, sample: Sample) -> Tensor:
        return 1 + 0 * x_t.sum((1, 2, 3))


class Nodes(Streams):
    """The nodes of a Gauss-Hermite quadrature in the place of the noise."""

    def rows(self, name, draw, n, *shape):
        return nodes()[0] if name == "noise" else super().rows(name, draw, n, *shape)


def nodes(n: int = 220) -> tuple[Tensor, Tensor]:
    """Points [n^2, 2, 1, 1] and weights [n^2] by which expectations over a standard normal are sums."""
    x, w = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(n))
    return torch.cartesian_prod(x, x)[:, :, None, None], torch.outer(w, w).flatten() / w.sum() ** 2


def sds(variates: Noise | None = None) -> SDS:
    """The distillation whose f is the unconditional prediction."""
    return SDS(Mixture(), Told(), scale=0.0, cfg="B", weighting="uniform", variates=variates)


def at(t: int) -> tuple[Sample, Tensor]:
    """x = (0.3, 0.4) at t under every node of the noise, and the nodes' weights."""
    noise, weight = nodes()
    return sample_of(Mixture(), X.expand_as(noise), torch.full((len(noise),), t), Nodes(0, 0)), weight


def spread(g: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Mean and total variance."""
    g = g.flatten(1)
    mean = weight @ g
    return mean, (weight @ (g - mean).square()).sum().item()


ROWS = {  # t: E[f]; total variance of f, SDS, f - h, phi alone, noise alone, both; weights of these three. By NumPy, alone
    50: ((-.90249, .092301), 2.439850, 6.415832, 8.673160, 2.014156, 1.951787, 1.738493, -.338400, -.493995,
         (-3.977081, 2.566025)),
    300: ((-.20178, .21439), .781079, 2.654352, 3.992696, .772096, .779072, .727499, .050166, .031682, (-.663263, .533875)),
    600: ((-.076673, .155843), 1.085585, .188991, .811209, .097966, .036803, .034446, .540595, .724149, (.611471, .090616)),
    900: ((-.028606, .051543), 1.894289, .001688, .429013, .182991, .000246, .000243, .725078, .973150, (.969089, .003351))}


@pytest.mark.parametrize("t", ROWS)
def test_means_variances_and_weights_on_the_mixture_are_the_exact_ones(t):
    sample, weight = at(t)
    mean, raw, plain, whole, alone, constant, both, mu_alone, mu_constant, mu_both = ROWS[t]
    f = answered(sds().residual(sample)) + sample.eps
    forms = {Known(noise=False): (alone, (0.0, mu_alone)), Noise(): (constant, (mu_constant,)), Known(): (both, mu_both)}
    found = [(spread(f, weight), raw), (spread(sds().gradient(sample), weight), plain)]
    noise, h = Known().variates(sample)
    assert torch.equal(noise, sample.eps) and (weight @ h.flatten(1)).abs().max() < 1e-7
    found.append((spread(f - h, weight), whole))
    for variates, (variance, mu) in forms.items():
        inner = products([*variates.variates(sample), f])
        variates.gram[t // 100] = torch.einsum("n,nij->ij", weight, inner).float()
        assert variates.weights(1.0, variates.gram)[t // 100].tolist() == pytest.approx(mu, rel=4e-4, abs=3e-4)  # a ridge
        found.append((spread(sds(variates).gradient(sample), weight), variance))
    for (centre, variance), expected in found:
        assert centre.tolist() == pytest.approx(mean, abs=1e-5) and variance == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("t, bias", [(50, .574), (300, .597), (600, .578), (900, .571)])
def test_the_variate_as_printed_does_not_have_mean_zero(t, bias):
    """eps phi + grad phi; figures as above."""
    sample, weight = at(t)
    x_t = sample.x_t.requires_grad_()
    phi = Known().phi(x_t, sample)
    printed = sample.eps * phi.detach().view(-1, 1, 1, 1) + torch.autograd.grad(phi.sum(), x_t)[0]
    assert (weight @ printed.flatten(1)).norm().item() == pytest.approx(bias, abs=2e-3)


def z(drawn: list[Tensor], truth: Tensor) -> float:
    """The largest deviation of a mean from the truth, in its standard deviations."""
    g = torch.cat(drawn).flatten(1)
    return ((g.mean(0) - truth) / (g.std(0) / math.sqrt(len(g)))).abs().max().item()


def test_weights_that_lag_leave_the_mean_and_those_of_the_same_sample_do_not():
    """Four hundred steps of 500 renders at t = 300, whose weights change with each step."""
    n, t = 500, 300
    truth = torch.tensor(ROWS[t][0], dtype=torch.float64)
    forms: dict[str, Noise] = {"both": Known(), "alone": Known(noise=False), "constant": Noise()}
    drawn: dict[str, list[Tensor]] = {name: [] for name in (*forms, "same sample", "printed")}
    changes = set()
    for k in range(400):
        sample = sample_of(Mixture(), X.expand(n, 2, 1, 1), torch.full((n,), t), Streams(0, k).part(range(n), n))
        for name, variates in forms.items():
            drawn[name].append(sds(variates).gradient(sample))
            variates.gram.copy_(variates.renewed("gram", variates.gram, sample.measured["gram"]))
        changes.add(round(forms["both"].weights(1.0, forms["both"].gram)[3, 1].item(), 6))
        f, h = answered(sds().residual(sample)) + sample.eps, Known().variates(sample)[1]
        drawn["same sample"].append(f - ((f * h).sum(1) / (h * h).sum(1)).unsqueeze(1) * h)
        drawn["printed"].append(f - steins(sample.eps, *slope(sample), torch.tensor(-1.0)))
    assert len(changes) > 300
    for name in forms:
        assert z(drawn[name], truth) < 5, name
    for name in ("same sample", "printed"):
        assert z(drawn[name], truth) > 20, name


def slope(sample: Sample) -> tuple[Tensor, Tensor]:
    x_t = sample.x_t.clone().requires_grad_()
    phi = Known().phi(x_t, sample)
    return phi.detach(), torch.autograd.grad(phi.sum(), x_t)[0]


def some(B: int = 6) -> Sample:
    x = torch.randn(B, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sample_of(Mixture(), x, torch.tensor([20, 130, 333, 480, 761, 980])[:B], Streams(0, 3).part(range(B), B))


@pytest.mark.parametrize("cls, keys", [(SDS, {}), (SJC, {"var_red": False}), (SJC, {}), (ASD, {})])
@pytest.mark.parametrize("variates", [Noise, Known])
def test_before_anything_is_measured_a_distillation_is_what_it_is_without(cls, keys, variates):
    plain, controlled = (cls(Mixture(), Told(), variates=each, **keys) for each in (None, variates()))
    torch.testing.assert_close(controlled.gradient(some()), plain.gradient(some()))


def test_with_phi_one_it_is_sds():
    sample = some()
    f = answered(sds().residual(sample)) + sample.eps
    _, h = One().variates(sample)
    torch.testing.assert_close(f - h, sds().gradient(sample))
    measured = One()
    measured.gram.copy_(measured.renewed("gram", measured.gram, products([sample.eps, h, f]).float().sum(0).expand(10, 3, 3)))
    constant = Noise()
    constant.gram.copy_(measured.gram[:, 1:, 1:])
    torch.testing.assert_close(measured.weights(1.0, measured.gram).sum(1, keepdim=True),
                               constant.weights(1.0, constant.gram), rtol=1e-4, atol=1e-6)


def test_averages_decay_at_levels_that_are_seen_and_stay_at_others():
    sample, variates = some(), Noise(decay=0.5)
    sds(variates).gradient(sample)
    measured = sample.measured["gram"]
    assert (measured[[0, 1, 3, 4, 7, 9]].diagonal(dim1=1, dim2=2) > 0).all() and not measured[[2, 5, 6, 8]].any()
    state = torch.rand(10, 2, 2, generator=torch.Generator().manual_seed(0))
    new, seen = variates.renewed("gram", state, measured), measured.any(2).any(1)
    torch.testing.assert_close(new[seen], 0.5 * state[seen] + measured[seen])
    assert torch.equal(new[~seen], state[~seen])


@pytest.fixture(scope="module")
def dpt(tmp_path_factory) -> str:
    return str(tiny_models.make("dpt", tmp_path_factory.mktemp("dpt")))


@pytest.mark.parametrize("phi", ["depth", "normal"])
def test_a_depth_networks_variate_has_mean_zero(phi, dpt):
    """Of one render under 3000 draws of the noise, along the mean gradient of phi; the variate as printed does not."""
    B, size = 3000, 8
    prior, rng = ClosedForm("cpu", size=size), Streams(0, 0).part(range(3000), 3000)
    u = torch.linspace(-1, 1, size)
    depth = (2 + 0.5 * torch.sin(3 * u)[:, None] * u).view(1, size, size, 1).expand(B, -1, -1, -1)
    image = Image(torch.zeros(B, size, size, 3), torch.ones_like(depth), depth)
    views = orbit(torch.zeros(B), 0.2, 1.8, 0.8, (size, size))
    conditions = TextConditions.of(prior, Plain(), "a red ball")
    sample = Sample(prior, torch.zeros(B, 3, size, size), torch.full((B,), 400), conditions(views), views, 0, rng, image)
    stein = Stein(DPT("cpu", model=dpt), phi=phi)
    noise, h = stein.variates(sample)
    sigma = (1 - prior.alpha_bar[400]).sqrt().item()
    compared = stein.phi(sample.x_t, sample).detach().view(-1, 1, 1, 1)
    gradient = (noise * compared - h) / sigma
    printed, along = noise * compared + gradient, gradient.mean(0)
    zs = [abs(found.mean() / found.std() * math.sqrt(B)).item() for found in (
        (vectors * along).sum((1, 2, 3)).double() for vectors in (h, printed))]
    assert zs[0] < 4 and zs[1] > 6 and 0 < sample.measured["phi"] < 2


def case(name: str, dpt: str) -> dict:
    """The guidance of a run."""
    estimator = {"use": "DPT", "model": dpt, "side": 16}
    guidance = {"prior": {"use": "ClosedForm", "size": 8}, "prompts": {"use": "Four"}}
    return guidance | {
        "noise": {"use": "SDS", "scale": 5, "variates": {"use": "Noise"}},
        "depth": {"use": "SDS", "scale": 5, "variates": {"use": "Stein", "estimator": estimator}},
        "normal": {"use": "ASD", "variates": {"use": "Stein", "estimator": estimator, "phi": "normal", "noise": False}}}[name]


NAMES = ("noise", "depth", "normal")


def words(name: str, dpt: str, *more: str) -> list[str]:
    """A short run of the toy with these variates."""
    return ["prompt=a red ball", f"stages.0.terms.0.guidance={json.dumps(case(name, dpt))}", "stages.0.steps=6",
            "stages.0.terms.0.views.batch=3", "stages.0.terms.0.views.size=8", "stages.0.render.samples=16",
            "stages.0.optimiser.lr=0.05", "turntable={frames: 1, size: 8}", "mesh={resolution: 8, texture: 0}",
            "window.shards=2", *more]


@pytest.fixture(scope="module")
def sequential(tmp_path_factory, dpt) -> dict[str, tuple]:
    """How each run ends, one step after the other."""
    root = tmp_path_factory.mktemp("sequential")
    assert all(follow("toy", words(name, dpt, "window.size=1"), root / name, False) for name in NAMES)
    return {name: ended(root / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_stopped_after_every_other_slide_it_ends_with_the_bits_of_the_sequential_method(name, sequential, dpt, tmp_path):
    """Averages of products are among the numbers compared."""
    stops = 0
    while not follow("toy", words(name, dpt, "window.threshold=0", "window.size=3"), tmp_path / "run", True):
        stops += 1
    assert ended(tmp_path / "run") == sequential[name] and stops > 1
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"mu_0"} <= told[-1].keys() and told[-1]["variance"]["theta"][0] > 0


@pytest.mark.mpi
def test_begun_alone_and_gone_on_with_by_ranks_in_shards_it_ends_with_the_same_bits(sequential, dpt, mpirun, tmp_path):
    runs: list[tuple[str, list[str], Path]] = [
        ("toy", words(name, dpt, "window.threshold=0", "window.size=3"), tmp_path / name) for name in NAMES]
    assert not any(follow(*run, True) for run in runs)
    done = mpirun(3, json.dumps(runs, default=str), program=("-c", MPI), timeout=400)
    assert done.returncode == 0, done.stderr
    assert {name: ended(run[2]) for name, run in zip(NAMES, runs)} == sequential
