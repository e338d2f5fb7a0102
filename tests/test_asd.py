"""Asynchronous score distillation: the rule of the shift, its limits, and exact values on a mixture of Gaussians."""

import numpy as np
import pytest
import torch
from mixture import Mixture, Told, exact, sample_of
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.guidance.asd import ASD
from mpiprop.guidance.csd import CSD
from mpiprop.guidance.distillation import Sample
from mpiprop.guidance.queries import answered

ANNEALED = {"t_min": [[0, 0.5], [25_000, 0.02]], "t_max": [[0, 0.98], [25_000, 0.5]]}  # as published


def asd(prior: Mixture | None = None, **keys) -> ASD:
    return ASD(prior or Mixture(), Told(), **keys)


def drawn(guidance: ASD, B: int, tau: int = 0, seed: int = 0) -> Sample:
    """A sample of B renders at timesteps as the guidance draws them."""
    rng = Streams(seed, tau).part(range(B), B)
    x = torch.randn(B, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return sample_of(guidance.prior, x, guidance.timesteps(B, tau, rng), rng, tau=tau)


@pytest.mark.parametrize("tau, t_lo, t_hi, largest", [
    (0, 500, 980, 45), (12_501, 259, 739, 47), (25_000, 20, 500, 47), (30_000, 20, 500, 47)])
def test_the_shift_is_uniform_up_to_a_tenth_of_the_way_from_the_moving_bound(tau, t_lo, t_hi, largest):
    """259.98 and 739.98 are rounded down. Beyond t = 953 the last timestep is nearer than a tenth of the way."""
    guidance = asd(**ANNEALED)
    sample = drawn(guidance, 100_000, tau)
    most = (0.1 * (sample.t - t_lo).double()).minimum(999 - sample.t)
    shift = guidance.shifted(sample) - sample.t
    assert (sample.t.min(), sample.t.max()) == (t_lo, t_hi)
    assert (shift >= 0).all() and (shift <= most).all() and shift.max() == largest
    assert (shift[most < 1] == 0).all()
    share = (shift[most > 30] / most[most > 30] * 4).long().bincount(minlength=4)[:4] / (most > 30).sum()
    assert (share - 0.25).abs().max() < 0.03  # whole numbers of up to 48 do not fill quarters evenly


def test_a_fixed_shift_is_the_largest_rounded_down_and_ends_at_the_last_timestep():
    guidance = asd(random=False, **ANNEALED)
    sample = drawn(guidance, 20_000)
    assert torch.equal(guidance.shifted(sample), (sample.t + (sample.t - 500) // 10).clamp(max=999))
    far = asd(random=False, eta=3.0)
    assert torch.equal(far.shifted(sample), (sample.t + 3 * (sample.t - 20)).clamp(max=999))
    assert (asd(eta=5.0).shifted(sample) <= 999).all()
    with pytest.raises(UserError, match="eta -0.1"):
        asd(eta=-0.1)


def test_views_that_are_denoised_together_share_t_and_shift_whatever_part_of_the_batch_they_are():
    prior = Mixture()
    prior.group = 4
    guidance, rng = asd(prior, **ANNEALED), Streams(0, 0)
    whole = sample_of(prior, torch.zeros(8, 2, 1, 1), guidance.timesteps(8, 0, rng.part(range(8), 8)), rng)
    later = guidance.shifted(whole).view(2, 4)
    assert (whole.t.view(2, 4) == whole.t.view(2, 4)[:, :1]).all() and (later == later[:, :1]).all()
    assert later[0, 0] != later[1, 0]
    some = rng.part(range(4, 8), 8)
    part = Sample(prior, whole.x[4:], guidance.timesteps(4, 0, some), whole.condition, whole.views[4:], 0, some)
    assert torch.equal(guidance.shifted(part), later[1])


@pytest.mark.parametrize("weighting", ["sds", "uniform"])
def test_without_a_shift_it_is_csd_times_the_scale_less_one(weighting):
    guidance = asd(eta=0.0, weighting=weighting)
    sample = drawn(guidance, 64)
    torch.testing.assert_close(guidance.gradient(sample), 6.5 * CSD(guidance.prior, Told(), weighting=weighting)
                               .gradient(sample), rtol=1e-6, atol=1e-12)


class Nodes(Streams):
    """The nodes of a Gauss-Hermite quadrature in the place of the noise."""

    def rows(self, name, draw, n, *shape):
        return nodes()[0] if name == "noise" else super().rows(name, draw, n, *shape)


def nodes(n: int = 120) -> tuple[Tensor, Tensor]:
    """Points [n^2, 2, 1, 1] and weights [n^2] by which expectations over a standard normal are sums."""
    x, w = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(n))
    return torch.cartesian_prod(x, x)[:, :, None, None], torch.outer(w, w).flatten() / w.sum() ** 2


def at_600(shift: int) -> tuple[ASD, Sample, Tensor]:
    """ASD with that shift, x = (0.3, 0.4) at t = 600 under every node of the noise, and the nodes' weights."""
    guidance = asd(eta=shift / 100, random=False, t_min=0.5, t_max=0.6)
    noise, weight = nodes()
    x = torch.tensor([0.3, 0.4], dtype=torch.float64).view(1, 2, 1, 1).expand_as(noise)
    sample = sample_of(guidance.prior, x, torch.full((len(x),), 600), Nodes(0, 0))
    assert (guidance.shifted(sample) == 600 + shift).all()
    return guidance, sample, weight


@pytest.mark.parametrize("shift, mean, variance", [
    (0, (-.33748, -1.23472), 1.448654), (10, (-.34073, -1.23625), 1.466523), (50, (-.35333, -1.24195), 1.542433),
    (100, (-.36843, -1.24806), 1.639232)])
def test_mean_and_variance_on_the_mixture_are_the_exact_ones(shift, mean, variance):
    """Scale 7.5, w = 1; figures of an independent quadrature with 220 x 220 nodes."""
    guidance, sample, weight = at_600(shift)
    g = answered(guidance.residual(sample)).view(-1, 2)
    found = weight @ g
    assert found.tolist() == pytest.approx(mean, abs=1e-5)
    assert (weight @ (g - found).square()).sum().item() == pytest.approx(variance, abs=2e-6)


@pytest.mark.parametrize("shift, distance", [(0, .471), (10, .447), (50, .358), (100, .266), (200, .136), (399, .031)])
def test_the_larger_the_shift_the_closer_to_sds(shift, distance):
    """The root mean square of what it takes away less the noise, which is what SDS takes away; figures as above."""
    guidance, sample, weight = at_600(shift)
    taken = answered(guidance.guided(sample, sample.x_t, sample.t)) - answered(guidance.residual(sample))
    off = (taken - sample.eps).view(-1, 2)
    assert (weight @ off.square()).sum().sqrt().item() == pytest.approx(distance, abs=6e-4)


def test_the_form_with_perp_neg_is_the_definition_and_asks_five_times():
    guidance = asd()
    sample = drawn(guidance, 6)
    sample = sample_of(guidance.prior, sample.x, sample.t, negatives=("bad", "other"))
    found, asked = answered(guidance.residual(sample)), guidance.prior.asked
    assert asked == 5 * 6
    later = guidance.shifted(sample)
    for b in range(6):
        def eps(text: Tensor, t: int) -> Tensor:
            bar = guidance.prior.alpha_bar[t].view(1)
            x_t = bar.sqrt() * sample.x[b:b + 1] + (1 - bar).sqrt() * sample.eps[b:b + 1]
            return exact(x_t, bar.sqrt(), (1 - bar).sqrt(), text[b:b + 1]).flatten()
        t, condition = int(sample.t[b]), sample.condition
        uncond = eps(condition.unconditional["text"], t)
        e = eps(condition.positive["text"], t) - uncond
        moved = e.clone()
        for negative in condition.negatives:
            away = eps(negative["text"], t) - uncond
            moved += -0.5 * (away - (away @ e) / (e @ e) * e)
        assert (moved - e) @ e == pytest.approx(0, abs=1e-9)
        expected = uncond + 7.5 * moved - eps(condition.positive["text"], int(later[b]))
        torch.testing.assert_close(found[b].flatten(), expected, rtol=1e-4, atol=1e-5)
