"""The density and colour of a cloud of Gaussians: against the sum over all of them, and the surface of a ball made of them."""

import pytest
import torch

from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.io.mesh import iso_surface
from mpiprop.shapes.clouds.base import Splats
from mpiprop.geometry.harmonics import C0
from mpiprop.shapes.clouds.splat_density import TOLERANCE, colour, density

RNG = Streams(0, 0).of("splats")


def cloud(N: int, scale: float, stretch: float) -> Splats:
    """Gaussians of random place, size, direction, opacity and colour in a ball of radius 0.5."""
    direction = torch.nn.functional.normalize(normal(RNG("direction"), N, 3), dim=1)
    return Splats(direction * uniform(RNG("radius"), N, 1) ** (1 / 3) * 0.5,
                  scale * (stretch * normal(RNG("scale"), N, 3)).exp(),
                  torch.nn.functional.normalize(normal(RNG("rotation"), N, 4), dim=1),
                  uniform(RNG("opacity"), N), normal(RNG("harmonics"), N, 4, 3))


def naive(splats: Splats, x: torch.Tensor) -> torch.Tensor:
    """What each Gaussian adds at each point [Q, N], float64, by inverting each covariance R S S R^T."""
    w, x1, y1, z1 = splats.rotations.double().unbind(1)
    i, j, k = (torch.stack(row, 1) for row in (
        (1 - 2 * (y1 ** 2 + z1 ** 2), 2 * (x1 * y1 + w * z1), 2 * (x1 * z1 - w * y1)),
        (2 * (x1 * y1 - w * z1), 1 - 2 * (x1 ** 2 + z1 ** 2), 2 * (y1 * z1 + w * x1)),
        (2 * (x1 * z1 + w * y1), 2 * (y1 * z1 - w * x1), 1 - 2 * (x1 ** 2 + y1 ** 2))))
    axes = torch.stack([i, j, k], 2)
    inverse = torch.linalg.inv(axes @ torch.diag_embed(splats.scales.double() ** 2) @ axes.mT)
    away = x.double()[:, None] - splats.means.double()
    return (-0.5 * torch.einsum("qni,nij,qnj->qn", away, inverse, away)).exp() * splats.opacities.double()


@pytest.mark.parametrize(("N", "scale", "stretch"), [(1, 0.1, 0.5), (300, 0.05, 0.7), (2000, 0.01, 0.5), (200, 1e-3, 0.1)])
def test_density_is_the_sum_over_all_gaussians(N, scale, stretch):
    """Never more than TOLERANCE below, nor above by more than single precision rounds; anywhere, near or far, one point or
    many."""
    splats = cloud(N, scale, stretch)
    x = torch.cat([uniform(RNG("x"), 1500, 3, lo=-0.7, hi=0.7), splats.means[:200]])
    truth = naive(splats, x).sum(1)
    missing = truth - density(splats, x)
    assert missing.max() < TOLERANCE and missing.min() > -1e-5 * truth.max().clamp(min=1)
    assert density(splats, x[:1]).item() == pytest.approx(truth[0].item(), abs=TOLERANCE)
    assert density(splats, x[:0]).shape == (0,) and density(splats, torch.full((1, 3), 50.0)).item() == 0


def test_colour_is_the_mean_by_what_the_gaussians_add():
    splats = cloud(300, 0.05, 0.5)
    x = uniform(RNG("x"), 500, 3, lo=-0.5, hi=0.5)
    weight = naive(splats, x)
    plain = (0.5 + C0 * splats.harmonics[:, 0].double()).clamp(0, 1)
    clear = weight.sum(1) > 0.5
    truth = (weight @ plain / weight.sum(1, keepdim=True))[clear]
    assert torch.allclose(colour(splats, x)[clear].double(), truth, atol=2 * TOLERANCE / 0.5)
    far = 20 * torch.nn.functional.normalize(splats.means[:5], dim=1)
    nearest = torch.cdist(far, splats.means).argmin(1)
    assert torch.allclose(colour(splats, far).double(), plain[nearest])


def test_the_surface_of_one_gaussian_is_where_its_density_says():
    """opacity exp(-r^2 / 2 s^2) = level on a sphere of radius s sqrt(2 ln(opacity / level)), stretched along the axes,
    here turned by a quarter about z."""
    splats = Splats(torch.tensor([[0.1, 0.0, -0.1]]), torch.tensor([[0.2, 0.1, 0.1]]),
                    torch.tensor([[2 ** -0.5, 0.0, 0.0, 2 ** -0.5]]), torch.tensor([0.9]), torch.zeros(1, 1, 3))
    mesh = iso_surface(lambda x: density(splats, x), 1.0, 48, 0.3, say=lambda text: None)
    reach = (2 * torch.tensor(0.9 / 0.3).log()).sqrt().item()
    assert mesh.open_edges == 0
    assert (mesh.vertices.max(0) - mesh.vertices.min(0)) == pytest.approx([0.2 * reach, 0.4 * reach, 0.2 * reach], rel=0.02)
