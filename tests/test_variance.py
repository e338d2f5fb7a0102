"""The running variance: against the sample variance with the same weights, and what is not finite shows in a sketch."""

import math

import pytest
import torch

from mpiprop.core.variance import DECAY, LEVELS, averaged, by_level, moments, sketch, variances


def drawn(N: int, D: int) -> torch.Tensor:
    """Vectors [N, D] whose entries vary by different amounts about means of different sizes."""
    rng = torch.Generator().manual_seed(0)
    scale, mean = torch.rand(D, generator=rng), torch.randn(D, generator=rng)
    return mean + scale * torch.randn(N, D, generator=rng)


def test_a_sketch_adds_up_and_keeps_lengths_on_average() -> None:
    g = drawn(40, 5003)
    y = sketch(g, 64)
    torch.testing.assert_close(sketch(g[:1] + 2 * g[1:2], 64), y[:1] + 2 * y[1:2], rtol=1e-4, atol=1e-3)
    assert y.square().sum(1).mean() == pytest.approx(g.square().sum(1).mean().item(), rel=0.2)


def test_the_running_variance_is_the_weighted_sample_variance_of_the_sketches() -> None:
    """The definition: weights w fall by DECAY a step; sum w |y - mean|^2 / (sum w (1 - sum w^2 / (sum w)^2))."""
    N, levels = 60, torch.arange(60) % 3
    y, averages = sketch(drawn(N, 700), 32).double(), None
    for n in range(N):
        averages = averaged(averages, by_level(moments(y[n:n + 1]), levels[n:n + 1]))
    found = variances(averages)
    for level in range(LEVELS):
        some = levels == level
        if level >= 3:
            assert found[level] is None
            continue
        w = DECAY ** torch.arange(N - 1, -1, -1, dtype=torch.float64)[some]
        mean = (w[:, None] * y[some]).sum(0) / w.sum()
        spread = (w * (y[some] - mean).square().sum(1)).sum() / w.sum()
        assert found[level] == pytest.approx(float(spread / (1 - w.square().sum() / w.sum() ** 2)), rel=1e-6)


def test_the_running_variance_is_near_that_of_the_vectors() -> None:
    g = drawn(300, 5003)
    averages = None
    for row in sketch(g, 128):
        averages = averaged(averages, moments(row[None]))
    assert variances(averages)[0] == pytest.approx(float(g.var(0).sum()), rel=0.1)


@pytest.mark.parametrize("entries", [[math.nan], [math.inf], [math.inf, -math.inf], [-math.inf]])
@pytest.mark.parametrize("place", [0, 128, 5000, 5002])
def test_an_entry_that_is_not_finite_shows_in_the_sketch(entries: list[float], place: int) -> None:
    """The computation unit relies on it. Entries that are a row apart are added to the same number."""
    g = drawn(1, 5003)
    for i, entry in enumerate(entries):
        g[0, (place - 128 * i) % 5003] = entry
    assert not sketch(g, 128).isfinite().all()
