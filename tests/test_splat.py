"""Splats against a loop over pixels: image and every gradient; who is seen; both doors."""

from math import exp, log

import pytest
import torch
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.render.splat import Splat, colours, rasterize
from mpiprop.shapes.clouds.base import Cloud, Splats
from mpiprop.shapes.surfaces.base import Surface
from mpiprop.views.cameras import Views, orbit

NAMES = ("means", "scales", "rotations", "opacities", "harmonics")


def cloud(seed: int, N: int = 40, K: int = 1, dtype=torch.float64) -> Splats:
    """Anisotropic Gaussians about the origin, some of them nearly opaque, and some hardly there."""
    rng = Streams(seed, 0)
    raw = (uniform(rng("means"), N, 3, lo=-0.6, hi=0.6), uniform(rng("scales"), N, 3, lo=-4.0, hi=-1.2).exp(),
           normalize(normal(rng("rotations"), N, 4), dim=-1), uniform(rng("opacities"), N, lo=0.002, hi=0.999),
           normal(rng("harmonics"), N, K, 3) * 0.5)
    return Splats(*(tensor.to(dtype).requires_grad_() for tensor in raw))


def cameras(B: int = 2, size=(13, 17), distance=1.6) -> Views:
    views = orbit(torch.linspace(0.3, 5.0, B), 0.4, distance, 0.9, size)
    return Views(*(tensor.double() for tensor in (views.c2w, views.fovy, views.azimuth, views.elevation, views.distance,
                                                  views.light)), size)


def loop(splats: Splats, views: Views, near: float = 0.2) -> torch.Tensor:
    """Colour, distance and opacity [B, H, W, 5], pixel by pixel and Gaussian by Gaussian."""
    (H, W), pictures = views.size, []
    for b in range(len(views)):
        right, up, back, eye = views.c2w[b, :3].T
        world = torch.stack([right, -up, -back])
        tan = torch.tan(views.fovy[b] / 2)
        f = H / (2 * tan)
        found = []
        for i in range(len(splats.means)):
            w, x, y, z = splats.rotations[i]
            R = torch.stack([torch.stack([1 - 2 * (y ** 2 + z ** 2), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
                             torch.stack([2 * (x * y + w * z), 1 - 2 * (x ** 2 + z ** 2), 2 * (y * z - w * x)]),
                             torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x ** 2 + y ** 2)])])
            sigma = R @ torch.diag(splats.scales[i] ** 2) @ R.T
            t = world @ (splats.means[i] - eye)
            if t[2] <= near:
                continue
            tx = (t[0] / t[2]).clamp(-1.3 * tan * W / H, 1.3 * tan * W / H)
            ty = (t[1] / t[2]).clamp(-1.3 * tan, 1.3 * tan)
            zero = torch.zeros_like(f)
            J = torch.stack([torch.stack([f / t[2], zero, -f / t[2] * tx]), torch.stack([zero, f / t[2], -f / t[2] * ty])])
            inverse = torch.linalg.inv(J @ world @ sigma @ world.T @ J.T + 0.3 * torch.eye(2).double())
            centre = f * t[:2] / t[2] + torch.tensor([W / 2, H / 2])
            colour = colours(splats, views)[b, i, :3]
            found.append((t[2].item(), centre, inverse, splats.opacities[i], colour, (splats.means[i] - eye).norm()))
        found.sort(key=lambda one: one[0])
        rows = []
        for py in range(H):
            for px in range(W):
                light, total = torch.ones(()).double(), torch.zeros(5).double()
                for _, centre, inverse, opacity, colour, distance in found:
                    d = torch.tensor([px + 0.5, py + 0.5]) - centre
                    alpha = opacity * torch.exp(-d @ inverse @ d / 2)
                    if alpha < 1 / 255:
                        continue
                    alpha = alpha.clamp(max=0.99)
                    if light * (1 - alpha) < 1e-4:
                        break
                    total = total + light * alpha * torch.cat([colour, distance[None], torch.ones(1)])
                    light = light * (1 - alpha)
                rows.append(total)
        pictures.append(torch.stack(rows).view(H, W, 5))
    return torch.stack(pictures)


@pytest.mark.parametrize("seed, K, distance", [(0, 1, 1.6), (1, 4, 0.9)])
def test_image_and_gradients_are_those_of_a_loop_over_pixels(seed, K, distance):
    """The nearer camera stands among the Gaussians: some are behind it, some beyond the linearised field."""
    splats, views = cloud(seed, K=K), cameras(distance=distance)
    expected = loop(splats, views)
    layers, _ = rasterize(splats, colours(splats, views), views, 0.2, 100.0)
    assert (layers - expected).abs().max() < 1e-10
    weight = normal(Streams(9, 0)("weight"), *layers.shape).double()
    inputs = [getattr(splats, name) for name in NAMES]
    truth = torch.autograd.grad((expected * weight).sum(), inputs)
    found = torch.autograd.grad((layers * weight).sum(), inputs)
    for name, a, b in zip(NAMES, truth, found):
        assert a.abs().max() > 0 and (a - b).abs().max() < 1e-10 * max(1.0, float(a.abs().max())), name


def test_one_gaussian_in_closed_form():
    """Round, in the middle: alpha(r) = o exp(-r^2 / 2 v) with v = (f s / d)^2 + 0.3, over a background of another colour."""
    views = cameras(1, (11, 11), 2.0)
    one = Splats(torch.zeros(1, 3).double(), torch.full((1, 3), 0.2).double(), torch.tensor([[1.0, 0, 0, 0]]).double(),
                 torch.tensor([0.7]).double(), torch.zeros(1, 1, 3).double())

    class One(Cloud):
        def splats(self):
            return one

    image = Splat()(One(), None, lambda directions: torch.ones_like(directions), views)
    f = 11 / (2 * float(torch.tan(views.fovy[0] / 2)))
    v = (f * 0.2 / 2) ** 2 + 0.3
    for i, j in ((5, 5), (5, 7), (3, 6)):
        alpha = 0.7 * exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * v))
        assert float(image.opacity[0, i, j]) == pytest.approx(alpha, rel=1e-6)
        assert image.rgb[0, i, j].tolist() == pytest.approx([0.5 * alpha + 1 - alpha] * 3, rel=1e-6)
        assert float(image.depth[0, i, j]) == pytest.approx(2 * alpha, rel=1e-6)
    beyond = [(0, 0)] if 50 / (2 * v) > log(0.7 * 255) else []
    assert all(float(image.opacity[0, i, j]) == 0 for i, j in beyond)


def test_who_covers_a_pixel_is_told_and_moves_of_centres_are_differentiated():
    splats, views = cloud(2), cameras()
    layers, screen = rasterize(splats, colours(splats, views), views, 0.2, 100.0)
    layers[..., 0].sum().backward()
    assert screen.visible.any() and not screen.visible.all()
    moved = screen.means.grad.norm(dim=-1)
    assert (moved[~screen.visible] == 0).all() and (moved[screen.visible] > 0).sum() > 0.9 * screen.visible.sum()


def test_nothing_to_see_is_the_background():
    splats, views = cloud(3), cameras()[:1]
    behind = Splats(splats.means + 100 * views.c2w[0, :3, 2], *(getattr(splats, name) for name in NAMES[1:]))
    layers, screen = rasterize(behind, colours(behind, views), views, 0.2, 50.0)
    layers.sum().backward()
    assert not layers.any() and not screen.visible.any() and not splats.means.grad.any()


def test_a_shape_of_another_kind_is_refused():
    with pytest.raises(UserError, match="draws clouds of Gaussians, and a Surface is none: use Mesh"):
        Splat().check(Surface())


@pytest.mark.gpu
def test_gsplat_agrees():
    """Its alpha is held below 0.999, ours below 0.99: opacities stay below both; what the 1/255 ellipse leaves out differs."""
    pytest.importorskip("gsplat")
    from mpiprop.render import gsplat, splat

    splats, views = cloud(4, N=200, dtype=torch.float32), orbit(torch.tensor([0.3, 2.0]), 0.4, 1.6, 0.9, (64, 64)).to("cuda")
    splats = Splats(*(getattr(splats, name).detach().cuda().requires_grad_() for name in NAMES))
    splats = Splats(splats.means, splats.scales, splats.rotations, splats.opacities * 0.95, splats.harmonics)
    seen = colours(splats, views)
    (ours, a), (theirs, b) = (tool.rasterize(splats, seen, views, 0.2, 100.0) for tool in (splat, gsplat))
    assert (ours - theirs).abs().mean() < 1e-3 and (ours - theirs).abs().max() < 3e-2
    ours.square().sum().backward(retain_graph=True)
    theirs.square().sum().backward()
    assert (a.means.grad - b.means.grad).norm() < 0.05 * a.means.grad.norm()
