"""The volume renderer is a quadrature of the rendering integral, and what it skips does not matter."""

import pytest
import torch

from mpiprop.core.errors import RunError, UserError
from mpiprop.core.streams import Streams
from mpiprop.guidance.regularizers import PENALTIES
from mpiprop.render.volume import Volume, composite_weights
from mpiprop.shapes.fields.base import Field, Values
from mpiprop.views.cameras import Image, Samples, orbit

RNG = Streams(0, 0)


class Ball(Field):
    """A soft ball with an exact normal, coloured by position."""

    def __init__(self, height=30.0, sharpness=20.0, cells=None):
        super().__init__()
        self.radius, self.has_normals, self.cells = 1.0, True, cells
        self.height = torch.nn.Parameter(torch.tensor(height))
        self.sharpness = sharpness

    def density(self, x):
        return self.height * torch.sigmoid(self.sharpness * (0.5 - x.norm(dim=-1)))

    def probe(self, x, normals, along=None):
        def values(which):
            at = x[which]
            normal = torch.nn.functional.normalize(at, dim=-1) if normals else None
            return Values(self.density(at), 0.5 + at / 2, normal)
        return self.density(x).detach(), values

    def occupancy(self):
        return self.cells


def features_as_colours(features, positions, normals, light):
    return features


def white(directions):
    return torch.ones_like(directions)


def exact_cells(field, R=16):
    """The largest density on a fine grid inside each of R^3 cells."""
    fine = (torch.arange(4 * R) + 0.5) / (2 * R) - 1
    density = field.density(torch.stack(torch.meshgrid(fine, fine, fine, indexing="ij"), -1).view(-1, 3))
    return torch.nn.functional.max_pool3d(density.detach().view(1, 1, *3 * (4 * R,)), 4)[0, 0]


def brute_force(field, views, step, jitter):
    """Colour, opacity, depth, normal by a loop over rays and steps in double precision, one sample at a time."""
    origins, directions = (rays.double().view(-1, 3) for rays in views.rays())
    cells, least = field.cells, 0.0
    if cells is not None:
        least = min(cells.mean().item() * step, 0.01)
    pixels = []
    for origin, direction, shift in zip(origins, directions, jitter.double()):
        reached, passed, sums = 1.0, 1.0, torch.zeros(8, dtype=torch.float64)
        for k in range(int(6 / step)):
            t = (shift + k + 0.5) * step
            x = origin + t * direction
            if x.abs().max() > field.radius:
                continue
            if cells is not None and cells[tuple(((x + 1) / 2 * len(cells)).long().tolist())] * step <= least:
                continue
            at = field.evaluate(x[None], True)
            alpha = 1 - torch.exp(-at.density * step)
            if reached >= 1e-4 and alpha >= least:
                sums = sums + passed * alpha * torch.cat([at.features[0], torch.ones(1), t.view(1), at.normals[0]])
                passed = passed * (1 - alpha)
            reached = reached * (1 - alpha.item())
        pixels.append(torch.cat([sums[:3] + 1 - sums[3], sums[3:]]))
    return torch.stack(pixels)


def flat(image):
    return torch.cat([image.rgb, image.opacity, image.depth, image.normal], -1).view(-1, 8)


@pytest.fixture
def views():
    return orbit(torch.tensor([0.3, 2.0]), 0.4, 2.0, 0.9, (4, 4))


@pytest.mark.parametrize("rng", [None, RNG])
@pytest.mark.parametrize("skip", [False, True])
def test_images_and_gradients_equal_brute_force_quadrature(views, rng, skip):
    field, renderer = Ball(), Volume(samples=48, chunk=5)
    if skip:
        field.cells = exact_cells(field)
    jitter = torch.zeros(32) if rng is None else torch.rand(32, generator=rng("render.jitter"))
    expected = brute_force(field, views, 1.732 * 2 / 48, jitter)
    found = flat(renderer(field, features_as_colours, white, views, rng))
    opacity = expected[:, 3]
    assert 0.2 < (opacity > 0.5).float().mean() < 0.8
    normal = torch.nn.functional.normalize(expected[:, 5:], dim=-1)
    torch.testing.assert_close(found[:, :5], expected[:, :5].float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[opacity > 0.1, 5:], normal[opacity > 0.1].float(), rtol=0, atol=1e-5)

    weights = torch.rand(32, 5, generator=RNG("weights"))
    mine, = torch.autograd.grad((found[:, :5] * weights).sum(), field.height)
    brute, = torch.autograd.grad((expected[:, :5] * weights).sum(), field.height)
    assert mine.item() == pytest.approx(brute.item(), rel=1e-4)


def test_more_samples_approach_the_integral_of_a_homogeneous_box():
    """Opacity 1 - exp(-density length), depth the closed form, straight through the middle of the box."""
    field = Ball(height=1.5, sharpness=0.0)  # density 0.75 everywhere
    image = Volume(samples=4000)(field, features_as_colours, white, orbit(0.0, 0.0, 3.0, 1e-4, (1, 1)))
    expected = 1 - torch.tensor(-0.75 * 2.0).exp()
    assert image.opacity.item() == pytest.approx(expected.item(), abs=1e-3)
    depth = 2 * expected + (1 - (1 + 1.5) * torch.tensor(-1.5).exp()) / 0.75  # integral of (2 + s) 0.75 e^(-0.75 s)
    assert image.depth.item() == pytest.approx(depth.item(), abs=3e-3)


def test_weights_and_their_gradient_equal_the_product_formula():
    ray = torch.tensor([1, 1, 1, 3, 4, 4])
    thickness = torch.tensor([0.1, 2.0, 0.7, 0.5, 0.0, 3.0], requires_grad=True)
    outer = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0, 1.5])
    double = thickness.detach().double().requires_grad_()
    expected, passed, last = [], 1.0, None
    for i, r in enumerate(ray.tolist()):
        passed = passed if r == last else 1.0
        expected.append(passed * (1 - torch.exp(-double[i])))
        passed, last = passed * torch.exp(-double[i]), r
    expected = torch.stack(expected)
    found = composite_weights(thickness, ray, 6)
    torch.testing.assert_close(found, expected.float())
    (found * outer).sum().backward()
    (expected * outer.double()).sum().backward()
    torch.testing.assert_close(thickness.grad, double.grad.float())


def test_what_is_skipped_is_almost_invisible():
    """Of a ray's dropped samples all but those past T = 1e-4 are thinner than 0.01, and few lie at a sharp surface."""
    field, views = Ball(height=100.0, sharpness=200.0), orbit(0.3, 0.4, 2.0, 0.9, (16, 16))
    whole = Volume(samples=96)(field, features_as_colours, white, views, RNG)
    field.cells = exact_cells(field)
    skipped = Volume(samples=96)(field, features_as_colours, white, views, RNG)
    torch.testing.assert_close(flat(skipped)[:, :4], flat(whole)[:, :4], rtol=0, atol=0.03)
    assert len(skipped.samples.t) < len(whole.samples.t) / 3


def test_light_stops_at_one_ten_thousandth():
    field = Ball(height=1000.0, sharpness=1000.0)
    samples = Volume(samples=100)(field, features_as_colours, white, orbit(0.0, 0.0, 2.0, 0.2, (4, 4)), RNG).samples
    inside = samples.positions.norm(dim=-1) < 0.5
    assert torch.bincount(samples.ray[inside]).max() == 1  # of thickness 34 each


@pytest.mark.parametrize("cells", [None, torch.zeros(8, 8, 8)])
def test_an_empty_field_shows_the_background_and_gives_a_zero_gradient(views, cells):
    field = Ball(height=0.0, cells=cells)
    image = Volume(samples=32)(field, features_as_colours, white, views, RNG)
    torch.testing.assert_close(image.rgb, torch.ones(2, 4, 4, 3), rtol=0, atol=0)
    assert image.opacity.abs().max() == 0 and image.normal.abs().max() == 0
    loss = image.rgb.sum() + sum(PENALTIES[name](image, views) for name in ("orient", "sparsity", "opaque", "z_variance"))
    loss.backward()
    assert loss.isfinite() and field.height.grad.isfinite()
    if cells is not None:
        assert field.height.grad == 0 and len(image.samples.t) == 0


def test_evaluation_in_chunks_equals_one_chunk_and_has_no_jitter(views):
    field = Ball()
    parts = [Volume(samples=32, chunk=chunk)(field, features_as_colours, white, views) for chunk in (3, 1000)]
    torch.testing.assert_close(flat(parts[0]), flat(parts[1]), rtol=0, atol=1e-6)
    assert parts[0].samples is None


def test_the_same_streams_give_the_same_bits(views):
    first, again, other = (flat(Volume(samples=32)(Ball(), features_as_colours, white, views, rng))
                           for rng in (RNG, RNG, Streams(0, 1)))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_nerfacc_is_asked_for_by_name_and_never_replaced(views):
    with pytest.raises(RunError, match="nerfacc does not load .* backend: torch"):
        Volume(samples=8, backend="nerfacc")(Ball(), features_as_colours, white, views, RNG)


@pytest.mark.gpu
def test_nerfacc_finds_the_same_samples():
    """But for points so near to a cell's wall that rounding decides."""
    pytest.importorskip("nerfacc")
    from mpiprop.render.volume import _march, _march_nerfacc

    views = orbit(torch.tensor([0.3, 2.0]), 0.4, 2.2, 0.9, (32, 32))
    origins, directions = (rays.reshape(-1, 3).cuda() for rays in views.rays())
    jitter = torch.rand(len(origins), generator=RNG("jitter")).cuda()
    for share in (0.0, 0.05, 1.0):
        occupied = (torch.rand(16, 16, 16, generator=RNG("cells")) < share).cuda()
        (ours, t), (theirs, u) = (march(origins, directions, occupied, 1.0, 0.05, jitter) for march in (_march, _march_nerfacc))
        one, other = ({*zip(ray.tolist(), at.tolist())} for ray, at in ((ours, t), (theirs, u)))
        assert len(one ^ other) <= 0.002 * len(one) and (theirs.diff() >= 0).all()


def packed_image():
    """Two of three pixels hit, by three samples and by one."""
    ray, weights = torch.tensor([0, 0, 0, 2]), torch.tensor([0.2, 0.5, 0.2, 0.3])
    normals = torch.tensor([[0.0, 0, 1], [0, 0.6, 0.8], [0, 0, -1], [0, 0, 1]])
    samples = Samples(ray, torch.tensor([1.0, 2.0, 4.0, 1.0]), weights.requires_grad_(), torch.zeros(4, 3),
                      torch.tensor([[0.0, 0, 1]]).expand(4, 3), normals.requires_grad_())
    opacity = torch.tensor([0.9, 0.0, 0.3]).view(1, 1, 3, 1)
    return Image(torch.zeros(1, 1, 3, 3), opacity.requires_grad_(), opacity, None, samples)


def test_penalties_have_their_published_values():
    image = packed_image()
    assert PENALTIES["orient"](image, None).item() == pytest.approx((0.2 + 0.5 * 0.64 + 0.3) / 2)
    assert PENALTIES["sparsity"](image, None).item() == pytest.approx((0.82 ** 0.5 + 0.1 + 0.1 ** 0.5) / 3)
    p = torch.tensor([0.9, 0.001, 0.3])
    entropy = (-p * p.log() - (1 - p) * (1 - p).log()).mean().item()
    assert PENALTIES["opaque"](image, None).item() == pytest.approx(entropy)
    mean = (0.2 * 1 + 0.5 * 2 + 0.2 * 4) / 0.9
    variance = (0.2 * (1 - mean) ** 2 + 0.5 * (2 - mean) ** 2 + 0.2 * (4 - mean) ** 2) / 0.9
    assert PENALTIES["z_variance"](image, None).item() == pytest.approx(variance)


def test_orient_moves_normals_not_weights():
    image = packed_image()
    PENALTIES["orient"](image, None).backward()
    assert image.samples.weights.grad is None and image.samples.normals.grad.abs().sum() > 0


def test_orient_without_normals_is_a_clear_mistake(views):
    image = Volume(samples=8)(Ball(), features_as_colours, white, views, RNG, needs=())
    assert image.normal is None
    with pytest.raises(UserError, match="penalties.orient"):
        PENALTIES["orient"](image, views)
