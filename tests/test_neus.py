"""How much of a signed distance a ray sees, by its angle to the surface (Wang et al. 2021; threestudio's NeuS)."""

from math import exp, log

import pytest
import torch
from scipy.integrate import quad

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.render.volume import Volume
from mpiprop.shapes.fields.base import RaySteps
from mpiprop.shapes.fields.sdf import SDF, grazing
from mpiprop.views.cameras import Views, look_at

SMALL = dict(levels=4, log2_table=10, base_resolution=4, growth=1.7, hidden=16, start_level=4)


class Everywhere(SDF):
    """Sampled all along a ray: nothing is left out as too thin."""

    def occupancy(self) -> None:
        return None


def ball(s: float = 20.0, **keys) -> SDF:
    """A sphere of radius 0.5, exactly: nothing is read from the grids."""
    shape = Everywhere(Streams(0, 0), radius=1.0, sphere=0.5, variance=log(s) / 10, **{"normal": "analytic"} | keys, **SMALL)
    shape.encoding.table.data.zero_()
    return shape


def opacity(shape: SDF, impact: float) -> float:
    """Of a ray that passes the centre at that distance."""
    position = torch.tensor([[3.0, impact, 0.0]])
    c2w = look_at(position, torch.tensor([[-3.0, impact, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    nothing = torch.zeros(1)
    views = Views(c2w, torch.full((1,), 1e-3), nothing, nothing, torch.full((1,), 3.0), position, (1, 1))
    return Volume(samples=1024)(shape, lambda features, *_: features, torch.ones_like, views).opacity.item()


def integral(impact: float, seen, s: float = 20.0) -> float:
    """1 - exp(-integral along that ray of s / (1 + exp(s f)) seen(cos)), f the distance, cos that of the ray and the normal."""
    def density(t: float) -> float:
        r = (impact ** 2 + t ** 2) ** 0.5
        return s / (1 + exp(s * (r - 0.5))) * seen(t / r if r else 0.0)
    return 1 - exp(-quad(density, -1.2, 1.2, limit=200)[0])


@pytest.mark.parametrize("normal", ["analytic", "finite_difference"])
@pytest.mark.parametrize("impact", [0.1, 0.45, 0.6])
def test_opacity_is_the_integral_with_the_share_that_a_ray_of_that_angle_sees(impact, normal):
    shape = ball(normal=normal, normal_step=1e-3, cosine_anneal=100)
    for tau, share in ((0, lambda cos: (1 - cos) / 2), (100, lambda cos: max(-cos, 0.0)),
                       (25, lambda cos: 0.75 * (1 - cos) / 2 + 0.25 * max(-cos, 0.0))):
        shape.at(tau)
        assert opacity(shape, impact) == pytest.approx(integral(impact, share), abs=4e-3)
    assert opacity(ball(cosine_anneal=None), impact) == pytest.approx(integral(impact, lambda cos: 1.0), abs=4e-3)


def test_a_ray_past_a_sphere_sees_what_threestudio_lets_it_see():
    """Radius 0.5, s = 20, impact 0.6: 0.43 when annealing begins, 0.12 when it is over; 0.67 if angles do not count."""
    shape = ball(cosine_anneal=10_000)
    found = []
    for tau in (0, 10_000, 20_000):
        shape.at(tau)
        found.append(opacity(shape, 0.6))
    assert found == pytest.approx([0.43, 0.12, 0.12], abs=5e-3)
    assert found[1] == pytest.approx(1 - 1 / (1 + exp(-2)), abs=2e-3)  # Phi(s f) at the nearest point, f = 0.1
    assert opacity(ball(cosine_anneal=None), 0.6) == pytest.approx(0.67, abs=5e-3)


def test_alphas_are_those_of_the_papers_formula():
    """(Phi(s f0) - Phi(s f1)) / Phi(s f0), with the 1e-5 that the published code adds above and below."""
    rng = torch.Generator().manual_seed(0)
    f = torch.rand(500, generator=rng, dtype=torch.float64) * 0.6 - 0.2
    fall, s, step = torch.rand(500, generator=rng, dtype=torch.float64), torch.tensor([20.0], dtype=torch.float64), 0.0135
    before, after = torch.sigmoid(s * (f + fall * step / 2)), torch.sigmoid(s * (f - fall * step / 2))
    alpha = ((before - after + 1e-5) / (before + 1e-5)).clamp(0, 1)
    torch.testing.assert_close(-torch.expm1(-grazing(f, fall, s, step) * step), alpha, atol=6e-4, rtol=0)
    assert grazing(torch.tensor([-5.0]), torch.tensor([1.0]), torch.tensor([1e6]), step).isfinite().all()


def test_a_field_without_a_ray_is_met_head_on_and_which_samples_count_is_decided_so():
    shape, x = ball(cosine_anneal=0), torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    directions = torch.nn.functional.normalize(x - 0.2, dim=-1)
    head_on, values = shape.probe(x, True, RaySteps(directions, 0.01))
    assert torch.equal(head_on, shape.density(x)) and torch.equal(shape.evaluate(x, True).density, head_on)
    seen = values(slice(None))
    cos = (seen.normals * directions).sum(-1)
    assert (seen.density[cos > 0] == 0).all() and (cos > 0).any() and (cos < 0).any()
    assert (seen.density <= head_on * 1.2).all()
    some = torch.arange(40) % 3 == 0
    assert torch.equal(values(some).density, seen.density[some])


@pytest.mark.parametrize("tau", [0, 30, 60])
def test_the_gradient_of_opacity_is_that_of_differences(tau):
    shape = ball(s=8.0, cosine_anneal=60, normal="finite_difference", normal_step=0.05).double()
    shape.encoding.table.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(3))
    x = torch.rand(30, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 0.5
    directions = torch.nn.functional.normalize(x.roll(1, 0) - x, dim=-1)
    shape.at(tau)

    def loss() -> torch.Tensor:
        return shape.probe(x, True, RaySteps(directions, 0.02))[1](slice(None)).density.square().sum()

    weights = [shape.sdf_network.get_parameter(name) for name, _ in shape.sdf_network.named_parameters()]
    for weight, grad in zip(weights, torch.autograd.grad(loss(), weights)):
        index, step, ends = int(grad.abs().argmax()), 1e-6, []
        for sign in (1, -1):
            weight.data.view(-1)[index] += sign * step
            ends.append(loss().item())
            weight.data.view(-1)[index] -= sign * step
        assert grad.view(-1)[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_a_negative_length_is_refused():
    with pytest.raises(UserError, match="cosine_anneal: needs 0 or more steps, or null, got -1"):
        ball(cosine_anneal=-1)
