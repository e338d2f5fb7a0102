"""Proposal and importance sampling: against a naive ray, a closed form and the other renderer; nothing beyond a far plane."""

from math import radians, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.streams import Streams
from mpiprop.render.volsdf import VolSDF
from mpiprop.render.volume import Volume
from mpiprop.shapes.fields.base import Field, Values
from mpiprop.shapes.generators.sdf import GeneratedSDF
from mpiprop.views.cameras import Views, orbit, turntable

RNG = Streams(0, 0)


class Ball(Field):
    """A soft ball with exact normals, coloured by position."""

    has_normals = True

    def __init__(self, radius: float = 1.0, height: float = 30.0) -> None:
        super().__init__()
        self.radius, self.height = radius, torch.nn.Parameter(torch.tensor(height))

    def density(self, x: Tensor) -> Tensor:
        return self.height * torch.sigmoid(20 * (0.5 - x.norm(dim=-1)))

    def features(self, x: Tensor) -> Tensor:
        return 0.5 + x / 2

    def probe(self, x, normals, along=None):
        return self.density(x).detach(), lambda which: Values(
            self.density(x[which]), self.features(x[which]), normalize(x[which], dim=-1) if normals else None)


def shade(features, positions, normals, light):
    return features


def white(directions):
    return torch.ones_like(directions)


def views(distance: float = 1.8, n: int = 2, size: int = 6) -> Views:
    return turntable(n, 0.2, distance, radians(45), (size, size))


def naive(field: Ball, origin: np.ndarray, direction: np.ndarray, near: float, far: float, n: int,
          m: int) -> tuple[float, float]:
    """Opacity and depth of one ray, interval after interval, in float64."""
    def density(t: float) -> float:
        x = origin + t * direction
        inside = (np.abs(x) <= field.radius).all()
        return 30 / (1 + np.exp(-20 * (0.5 - np.linalg.norm(x)))) if inside else 0.0

    def weights(edges: np.ndarray) -> list[float]:
        light, found = 1.0, []
        for a, b in zip(edges, edges[1:]):
            alpha = min(density((a + b) / 2) * (b - a), 1.0)
            found.append(light * alpha)
            light *= 1 - alpha
        return found
    edges = near + (far - near) * (np.arange(n + 1) + 0.5) / (n + 1)
    shares = np.array(weights(edges)) + 1e-5
    until = np.concatenate([[0], shares.cumsum() / shares.sum()])
    edges = np.sort(np.concatenate([edges, np.interp((np.arange(m + 1) + 0.5) / (m + 1), until, edges)]))
    found = np.array(weights(edges))
    return found.sum(), (found * (edges[:-1] + edges[1:]) / 2).sum()


def test_a_render_is_the_naive_one() -> None:
    field, seen = Ball(), views(n=1)
    with torch.no_grad():
        image = VolSDF(proposal=24, importance=12)(field, shade, white, seen)
    origins, directions = (rays[0].double().numpy() for rays in seen.rays())
    for i in range(6):
        for j in range(6):
            opacity, depth = naive(field, origins[i, j], directions[i, j], 0.1, 1.8 + sqrt(3), 24, 12)
            assert image.opacity[0, i, j].item() == pytest.approx(opacity, abs=2e-5)
            assert image.depth[0, i, j].item() == pytest.approx(depth, abs=5e-5)


def test_it_agrees_with_equal_steps_where_both_are_fine() -> None:
    """A linear alpha is that of an exponential as intervals become short."""
    field = Ball()
    with torch.no_grad():
        ours, theirs = (renderer(field, shade, white, views()) for renderer in
                        (VolSDF(proposal=2000, importance=1000), Volume(samples=4000)))
    for name in ("rgb", "opacity", "depth"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=3e-3)


def test_importance_samples_go_where_matter_is() -> None:
    """With few even intervals, the same number of further edges improves on as many more even ones."""
    field = Ball()
    with torch.no_grad():
        truth, even, chosen = (VolSDF(proposal=n, importance=m)(field, shade, white, views(size=12)).depth
                               for n, m in ((4000, 0), (40, 0), (20, 20)))
    assert (chosen - truth).abs().mean() < 0.5 * (even - truth).abs().mean()


@pytest.mark.parametrize("distance", [1.2, 4.5, 7.6])
def test_an_object_is_seen_from_any_distance(distance: float) -> None:
    """A far plane at 4, as published, hides what is farther."""
    fovy = 2 * torch.atan(torch.tensor(0.9 / distance)).item()
    seen = orbit(torch.tensor([0.0, 2.0]), 0.3, distance, fovy, (9, 9))
    with torch.no_grad():
        image = VolSDF()(Ball(radius=2.0), shade, white, seen)
    assert image.opacity[:, 4, 4].min() > 0.99
    assert image.depth[:, 4, 4].mean().item() == pytest.approx(distance - 0.5, abs=0.1)


def test_alphas_are_at_most_one() -> None:
    image = VolSDF(proposal=8, importance=0)(Ball(height=1000.0), shade, white, views(), RNG)
    assert image.opacity.max() <= 1 + 1e-6 and image.samples.weights.min() >= 0 and image.opacity.max() > 0.999


def test_weights_of_samples_are_those_of_the_pixels_and_gradients_are_exact() -> None:
    field, renderer = Ball(height=3.0).double(), VolSDF(proposal=12, importance=0)
    exact = Views(*(value.double() if isinstance(value, Tensor) else value for value in vars(views(n=1)).values()))
    image = renderer(field, shade, white, exact, RNG)
    summed = torch.zeros(36, dtype=torch.float64).index_add(0, image.samples.ray, image.samples.weights)
    torch.testing.assert_close(summed, image.opacity.flatten())
    assert image.normal is not None and not image.normal.requires_grad

    def loss(height: Tensor) -> Tensor:
        field.height.data = height.detach()
        return torch.func.functional_call(_Rendered(field, renderer, exact), {"field.height": height}, ())
    assert torch.autograd.gradcheck(loss, torch.tensor(3.0, dtype=torch.float64, requires_grad=True))


class _Rendered(torch.nn.Module):
    def __init__(self, field: Ball, renderer: VolSDF, views: Views) -> None:
        super().__init__()
        self.field, self.renderer, self.views = field, renderer, views

    def forward(self) -> Tensor:
        image = self.renderer(self.field, shade, white, self.views, RNG)
        return image.rgb.square().sum() + image.depth.sum()


def test_evaluation_in_chunks_equals_one_chunk() -> None:
    with torch.no_grad():
        one, many = (VolSDF(proposal=16, importance=8, chunk=chunk)(Ball(), shade, white, views()) for chunk in (1000, 7))
    torch.testing.assert_close(one.rgb, many.rgb)
    assert one.samples is None


def test_jitter_is_drawn_from_the_step_and_each_views_row() -> None:
    field, renderer = Ball(), VolSDF(proposal=16, importance=8)
    whole = renderer(field, shade, white, views(n=4), RNG.part(range(4), 4))
    part = renderer(field, shade, white, views(n=4)[2:], RNG.part(range(2, 4), 4))
    torch.testing.assert_close(whole.rgb[2:], part.rgb)
    assert not torch.allclose(whole.rgb, renderer(field, shade, white, views(n=4), Streams(0, 1).part(range(4), 4)).rgb)


def test_slopes_that_a_penalty_alone_reads_are_of_some_samples() -> None:
    field = GeneratedSDF(lambda x: torch.cat([0.1 * torch.sin(3 * x[:, :1]).T, x.T]), radius=1.0, sphere=0.5)
    every, third, shaded, plain = (
        VolSDF(proposal=16, importance=8, slopes=slopes)(field, shade, white, views(), RNG, needs)
        for slopes, needs in ((1, ("slope",)), (3, ("slope",)), (3, ("slope", "normals")), (3, ())))
    assert len(every.samples.slope) == len(every.samples.ray) and every.normal is None
    assert torch.equal(third.samples.slope, every.samples.slope[::3]) and torch.equal(third.rgb, every.rgb)
    assert torch.equal(shaded.samples.slope, every.samples.slope) and shaded.normal is not None
    assert plain.samples.slope is None and plain.samples.normals is None


def test_slopes_of_all_samples_take_no_second_evaluation_of_the_samples() -> None:
    evaluated: list[int] = []

    def raw(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # what finds the samples is not differentiated
            evaluated.append(len(x))
        return torch.cat([0.1 * torch.sin(3 * x[:, :1]).T, x.T])
    image = VolSDF(proposal=16, importance=8)(GeneratedSDF(raw, radius=1.0, sphere=0.5), shade, white, views(), RNG, ("slope",))
    assert sum(evaluated) == 4 * len(image.samples.ray)  # each, and its three neighbours
