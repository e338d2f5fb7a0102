"""Depth estimators: gradients that are true, comparisons of depths against closed forms, and files that do not fit."""

import pytest
import tiny_models
import torch
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.estimators.decoder import TinyDecoder
from mpiprop.estimators.depth import DPT, Depth, DepthAnything
from mpiprop.estimators.relief import alignment, correlation, inverse_depth
from mpiprop.views.cameras import Image

KINDS = {"dpt": DPT, "depth-anything": DepthAnything}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("estimators")
    return {kind: str(tiny_models.make(kind, root / kind)) for kind in (*KINDS, "taesd")}


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def slope(value, x: Tensor) -> tuple[float, float]:
    """The derivative of a scalar function of x in a random direction, by autograd and by differences."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x = x.double().requires_grad_()
    told = (torch.autograd.grad(value(x), x)[0] * direction).sum().item()
    step = 1e-7  # small: the networks have many kinks
    with torch.no_grad():
        return told, ((value(x + step * direction) - value(x - step * direction)) / (2 * step)).item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_to_the_pixels_is_that_of_differences(kind, folders):
    network: Depth = KINDS[kind]("cpu", model=folders[kind])
    assert network.verify() == [] and 0 < network.weight_bytes() < 1e6
    found = network(pictures(2, 3, 20, 24))
    assert found.shape == (2, network.side, network.side) and found.std() > 0
    network.module.double()
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    told, true = slope(lambda x: (weight * network(x)).sum(), pictures(2, 3, 20, 24))
    assert told == pytest.approx(true, rel=1e-4) and abs(told) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_that_of_the_librarys_own_preparation(kind, folders):
    """transformers' image processors resize pictures of the right size to themselves, and normalise them."""
    from transformers import DPTImageProcessor

    network = KINDS[kind]("cpu", model=folders[kind])
    side, rgb = network.side, (pictures(1, 3, network.side, network.side) * 255).round()
    processor = DPTImageProcessor(size={"height": side, "width": side}, image_mean=list(network.mean),
                                  image_std=list(network.std))
    prepared = processor(rgb, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(network(rgb / 255), network.module(prepared).predicted_depth, atol=1e-5, rtol=1e-5)


def test_pictures_of_a_batch_are_seen_apart(folders):
    network, rgb = DPT("cpu", model=folders["dpt"], side=16), pictures(3, 3, 16, 16)
    torch.testing.assert_close(network(rgb)[1:2], network(rgb[1:2]), atol=1e-6, rtol=1e-5)


def test_a_tiny_decoder_decodes_as_the_library_does(folders):
    from diffusers import AutoencoderTiny

    decoder, x = TinyDecoder("cpu", model=folders["taesd"]), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert decoder.verify() == []
    theirs = AutoencoderTiny.from_pretrained(folders["taesd"])
    with torch.no_grad():
        torch.testing.assert_close(decoder(x) * 2 - 1, theirs.decode(x / theirs.config.scaling_factor).sample)
    decoder.module.double()
    told, true = slope(lambda x: decoder(x).square().sum(), x)
    assert told == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("make, says", [
    (lambda folders: DPT("cpu", model=folders["dpt"], side=20), "side 20: needs a multiple of 8"),
    (lambda folders: DepthAnything("cpu", model=folders["dpt"]), "says model_type 'dpt'"),
    (lambda folders: DPT("cpu", model=folders["dpt"] + "/nowhere"), "there is no folder"),
    (lambda folders: TinyDecoder("cpu", model=folders["dpt"]), "weights are not those of its configuration|makes no")])
def test_models_that_do_not_fit_are_told(make, says, folders):
    with pytest.raises(UserError, match=says):
        make(folders).verify()


def plane(a: float, b: float, n: int = 16) -> Tensor:
    u = torch.linspace(-1, 1, n)
    return (1 + a * u[:, None] + b * u)[None]


def test_correlation_is_pearsons_under_weights():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 9, 7, generator=rng)
    weight = (torch.rand(4, 9, 7, generator=rng) < 0.6).float()
    found = correlation(a, b, weight)
    for i in range(4):
        inside = weight[i] > 0
        expected = torch.corrcoef(torch.stack([a[i][inside], b[i][inside]]))[0, 1]
        assert found[i].item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(correlation(a, 3 * a + 2, weight), torch.ones(4))
    torch.testing.assert_close(correlation(a, 2 - a, weight), -torch.ones(4))


@pytest.mark.parametrize("compare", [correlation, alignment])
def test_a_constant_depth_or_nothing_seen_compares_as_zero_with_a_gradient_of_zero(compare):
    a = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for true, weight in ((torch.full((2, 8, 8), 0.3), torch.ones(2, 8, 8)), (torch.rand(2, 8, 8), torch.zeros(2, 8, 8))):
        value = compare(a, true, weight)
        assert not value.any() and not torch.autograd.grad(value.sum(), a)[0].any()


def test_alignment_is_the_cosine_between_the_planes_of_two_reliefs():
    """Heights of unit deviation times 0.25: the planes 1 + u and 1 + v both rise by 0.25 / std(u) for each half width."""
    n = 16
    rise = 0.25 / torch.linspace(-1, 1, n).std(correction=0).item() * n / (n - 1)
    everywhere = torch.ones(1, n, n)
    assert alignment(plane(1, 0), plane(0, 1), everywhere).item() == pytest.approx(1 / (1 + rise ** 2), rel=1e-4)
    assert alignment(plane(1, 0), plane(3, 0), everywhere).item() == pytest.approx(1, rel=1e-5)


def test_inverse_depth_is_that_of_what_is_seen_whatever_its_opacity():
    opacity = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 3, 1).expand(1, 4, 3, 1)
    image = Image(torch.zeros(1, 4, 3, 3), opacity, 2.5 * opacity)
    inverse, seen = inverse_depth(image, (4, 3))
    torch.testing.assert_close(inverse[..., 1:], torch.full((1, 4, 2), 0.4))
    torch.testing.assert_close(seen, opacity[..., 0])
