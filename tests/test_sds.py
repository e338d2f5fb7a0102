"""Score distillation against closed forms, per-sample loops and the definitions written out."""

import math

import asking
import pytest
import tiny_models
import torch
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.guidance.cfg import guided, perp_neg
from mpiprop.guidance.distillation import surrogate
from mpiprop.guidance.sds import SDS
from mpiprop.guidance.timesteps import annealed, uniform_timesteps
from mpiprop.priors.closed_form import ClosedForm
from mpiprop.priors.diffusion import StableDiffusion
from mpiprop.conditioning.text import Four, Plain, TextConditions
from mpiprop.views.cameras import Image, Views, orbit

PROMPT = "a red chair"
SIZE = 8


def views_of(B: int) -> Views:
    return orbit(torch.linspace(-3, 3, B), torch.linspace(-0.2, 1.3, B), 1.8, 0.8, (SIZE, SIZE))


def render(B: int, size: int = SIZE) -> Image:
    rgb = torch.rand(B, size, size, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    return Image(rgb, torch.ones(B, size, size, 1), torch.ones(B, size, size, 1))


def closed_form(directions=Four(), **keys) -> SDS:
    prior = ClosedForm("cpu", size=SIZE)
    return SDS(prior, TextConditions.of(prior, directions, PROMPT), **keys)


def at_timestep(t: float) -> dict:
    return {"t_min": t, "t_max": t}


class Blind(ClosedForm):
    """A prior that predicts one number wherever it is given a prompt, and zero otherwise."""

    def __init__(self, value: float) -> None:
        super().__init__("cpu", size=SIZE)
        self.value = value

    def eps(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        out = torch.zeros_like(x_t)
        out[:len(out) // 2] = self.value
        return out


@pytest.mark.parametrize("weighting, w", [
    ("sds", lambda bar: 1 - bar), ("uniform", lambda bar: 1.0), ("fantasia3d", lambda bar: math.sqrt(bar) * (1 - bar))])
@pytest.mark.parametrize("cfg, factor", [("A", 8.0), ("B", 7.0)])
def test_gradient_is_the_closed_form(weighting, w, cfg, factor):
    """With x ~ N(mu, s^2), guidance by `factor` moves the mean to mu_u + factor (mu_c - mu_u), so eps is known."""
    B, tau, streams = 5, 3, Streams(1, 3)
    image, views, sds = render(B), views_of(B), closed_form(scale=7.0, weighting=weighting, cfg=cfg)
    scalar, numbers = sds(image, views, tau, streams)
    scalar.backward()
    t = torch.randint(20, 981, (B,), generator=streams("t"))
    noise = normal(streams("noise"), B, 3, SIZE, SIZE).double()
    prior, total = sds.prior, 0.0
    for b in range(B):
        bar = prior.alpha_bar[t[b]].item()
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        c, u = (prior.mean(prior.embed([text]))[0].double() for text in (f"{PROMPT}, {view(views, b)} view", ""))
        x0 = 2 * image.rgb[b].detach().permute(2, 0, 1).double() - 1
        x_t = alpha * x0 + sigma * noise[b]
        eps = sigma * (x_t - alpha * (u + factor * (c - u))) / (bar * prior.spread ** 2 + sigma ** 2)
        g = w(bar) * (eps - noise[b])
        total += g.square().sum().item() / (2 * B)
        expected = 2 * g.permute(1, 2, 0) / B  # x0 = 2 rgb - 1
        torch.testing.assert_close(image.rgb.grad[b].double(), expected, atol=1e-5, rtol=1e-4)
    assert scalar.item() == pytest.approx(total, rel=1e-4)
    assert numbers["sds"] == pytest.approx(total, rel=1e-4) and numbers["t"] == pytest.approx(t.double().mean().item())
    assert numbers["grad_norm"] == pytest.approx(image.rgb.grad.norm().item() / 2, rel=1e-4)


def view(views: Views, b: int) -> str:
    azimuth, elevation = (abs(math.degrees(x[b])) for x in (views.azimuth, views.elevation))
    return "overhead" if elevation > 60 else "front" if azimuth < 45 else "back" if azimuth > 135 else "side"


def test_expected_gradient_points_from_the_mean_to_the_render():
    """E_eps[g] = w sigma alpha (x0 - mu) / (alpha^2 s^2 + sigma^2), whatever was drawn (scale 0 in form A: cond)."""
    B = 4000
    sds = closed_form(Plain(), scale=0.0, weighting="uniform", **at_timestep(0.3))
    rgb, one = torch.full((B, SIZE, SIZE, 3), 0.3).requires_grad_(), torch.ones(B, SIZE, SIZE, 1)
    image = Image(rgb, one, one)
    sds(image, views_of(B), 0, Streams(0, 0))[0].backward()
    bar, mu = sds.prior.alpha_bar[300].float(), sds.prior.mean(sds.prior.embed([PROMPT]))[0]
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    expected = sigma * alpha * (-0.4 - mu) / (bar * sds.prior.spread ** 2 + sigma ** 2)
    mean = image.rgb.grad.sum(0).permute(2, 0, 1) / 2
    deviation = (1 - sigma ** 2 / (bar * sds.prior.spread ** 2 + sigma ** 2)) / math.sqrt(B)
    assert ((mean - expected) / deviation).abs().max() < 5


def test_guidance_is_linear_between_both_predictions():
    u, c = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided(u, c, 1.0), c)
    torch.testing.assert_close(guided(u, c, 20.0), u + 20 * (c - u))


@pytest.mark.parametrize("rescale", [0.5, 1.0])
def test_rescaling_is_the_librarys(rescale):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    u, c = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = rescale_noise_cfg(guided(u, c, 50.0), c, rescale)
    torch.testing.assert_close(guided(u, c, 50.0, rescale), expected)


def test_perp_neg_is_the_per_sample_definition():
    rng = torch.Generator().manual_seed(0)
    u, c = torch.randn(2, 5, 4, 3, 3, generator=rng)
    negatives, weights = torch.randn(2, 5, 4, 3, 3, generator=rng), torch.randn(2, 5, generator=rng)
    moved = perp_neg(u, c, negatives, weights)
    for b in range(5):
        e = (c[b] - u[b]).flatten()
        expected = c[b].flatten().clone()
        for k in range(2):
            n = (negatives[k, b] - u[b]).flatten()
            perp = n - torch.dot(n, e) / torch.dot(e, e) * e
            assert abs(torch.dot(perp, e)) < 1e-4
            expected += weights[k, b] * perp
        torch.testing.assert_close(moved[b].flatten(), expected)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: str(tiny_models.make(kind, root / kind)) for kind in ("sd", "sd-v")}


def test_perp_neg_pairs_every_negative_with_its_own_latent(folders):
    """One UNet call for a batch of six views says what six batches of one say."""
    prior, views = StableDiffusion("cpu", model=folders["sd"]), views_of(6)
    rng = torch.Generator().manual_seed(0)
    prompts = TextConditions(5 * torch.randn(6, 4, tiny_models.WIDTH, generator=rng), Four(perp_neg=1.0))
    sds = SDS(prior, prompts, scale=7.5, cfg="B")
    x_t, t = torch.randn(6, 4, 8, 8, generator=rng), torch.tensor([20, 100, 300, 500, 700, 980])
    batch = asking.guided(sds, x_t, t, views)
    plain = SDS(prior, TextConditions(prompts.embeddings, Four()), scale=7.5, cfg="B")
    plain = asking.guided(plain, x_t, t, views)
    assert (batch - plain).abs().amax((1, 2, 3))[1:4].min() > 1e-3  # or the test would not see a wrong pairing
    for b in range(6):
        alone = asking.guided(sds, x_t[b:b + 1], t[b:b + 1], one(views, b))
        torch.testing.assert_close(batch[b:b + 1], alone, atol=1e-4, rtol=1e-4)


def one(views: Views, b: int) -> Views:
    angles = (views.azimuth[b], views.elevation[b], views.distance[b], views.fovy[b])
    return orbit(*angles, views.size)


def test_a_v_prediction_model_gives_the_gradient_of_its_epsilon_twin(folders):
    """The twin predicts alpha v + sigma x_t itself; nothing else may tell the two apart."""
    v_prior = StableDiffusion("cpu", model=folders["sd-v"])

    class Twin(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, encoder_hidden_states: Tensor):
            out = v_prior.unet(x_t, t, encoder_hidden_states=encoder_hidden_states)
            bar = v_prior.alpha_bar[t].float()[:, None, None, None]
            out.sample = bar.sqrt() * out.sample + (1 - bar).sqrt() * x_t
            return out

    twin = StableDiffusion("cpu", model=folders["sd"])
    twin.unet, twin.vae = Twin(), v_prior.vae
    prompts = TextConditions.of(v_prior, Four(), PROMPT)
    grads = []
    for prior in (v_prior, twin):
        image = render(3, 24)
        SDS(prior, prompts, scale=10.0)(image, views_of(3), 0, Streams(0, 0))[0].backward()
        grads.append(image.rgb.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads)


def test_the_gradient_is_a_function_of_render_step_and_seed_alone(folders):
    prior = StableDiffusion("cpu", model=folders["sd"])
    sds = SDS(prior, TextConditions.of(prior, Four(perp_neg=1.0), PROMPT))

    def gradient(seed: int, tau: int) -> Tensor:
        image = render(2, 24)
        sds(image, views_of(2), tau, Streams(seed, tau))[0].backward()
        return image.rgb.grad

    first = gradient(0, 7)
    torch.rand(10)  # the global generator is not asked
    assert torch.equal(gradient(0, 7), first)
    assert not torch.equal(gradient(0, 8), first) and not torch.equal(gradient(1, 7), first)


def test_timesteps_fill_the_closed_interval():
    drawn = uniform_timesteps(Streams(0, 0)("t"), 3000, 20, 40)
    assert drawn.unique().tolist() == list(range(20, 41))
    counts = drawn.bincount()[20:].double()
    assert ((counts - 3000 / 21) ** 2 / (3000 / 21)).sum() < 45  # chi square, 20 degrees of freedom, p = 0.001
    assert len(uniform_timesteps(Streams(0, 0)("t"), 50, 20, 980, per_sample=False).unique()) == 1


def test_the_range_of_timesteps_follows_its_schedule():
    sds = closed_form(t_min=[[0, 0.5], [100, 0.02]], t_max=[[0, 0.98], [100, 0.5]])
    for tau, lo, hi in ((0, 500, 980), (50, 260, 740), (100, 20, 500), (900, 20, 500)):
        drawn = sds.timesteps(5000, tau, Streams(0, tau))
        assert lo <= drawn.min() <= lo + 5 and hi - 5 <= drawn.max() <= hi
    assert closed_form(t_max=1.0, t_min=1.0).timesteps(2, 0, Streams(0, 0)).tolist() == [999, 999]
    with pytest.raises(UserError, match="t_min 0.5 and t_max 0.3 at step 4"):
        closed_form(t_min=0.5, t_max=0.3).timesteps(2, 4, Streams(0, 4))


def test_annealed_timesteps_go_down_by_a_square_root():
    assert annealed(0, 400, 0.02, 0.98) == 0.98 and annealed(400, 400, 0.02, 0.98) == pytest.approx(0.02)
    assert annealed(100, 400, 0.02, 0.98) == pytest.approx(0.5)
    assert annealed(999, 400, 0.02, 0.98) == pytest.approx(0.02)
    sds = closed_form(anneal=400)
    for tau, t in ((0, 980), (100, 500), (500, 20)):
        assert sds.timesteps(2, tau, Streams(0, tau)).tolist() == [t, t]


def test_the_surrogates_gradient_is_exactly_g_over_b():
    rng = torch.Generator().manual_seed(0)
    x = (1000 * torch.randn(4, 3, 2, 2, generator=rng)).requires_grad_()
    g = 1e-6 * torch.randn(4, 3, 2, 2, generator=rng)  # x - (x - g) would lose it
    scalar = surrogate(x, g)
    scalar.backward()
    assert torch.equal(x.grad, g / 4)
    assert scalar.item() == pytest.approx(g.double().square().sum().item() / 8, rel=1e-5)


def test_gradient_is_clipped_by_its_schedule():
    for tau, bound in ((0, 0.5), (100, 2.0)):
        image = render(3)
        closed_form(grad_clip=[[0, 0.5], [100, 2.0]])(image, views_of(3), tau, Streams(0, tau))[0].backward()
        assert image.rgb.grad.abs().max().item() == pytest.approx(2 * bound / 3, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_a_broken_prediction_is_not_hidden(value, grad_clip):
    """The unit refuses what is not finite; clipping must not turn it into something that is."""
    prior, image = Blind(value), render(2)
    sds = SDS(prior, TextConditions.of(prior, Plain(), PROMPT), grad_clip=grad_clip)
    scalar, _ = sds(image, views_of(2), 0, Streams(0, 0))
    scalar.backward()
    assert not scalar.isfinite() and not image.rgb.grad.isfinite().any()


def test_descent_on_pixels_finds_the_mean_picture():
    """The whole point, on the smallest problem: follow the gradient from noise and arrive at mu of the view's text."""
    sds, views = closed_form(scale=0.0, weighting="uniform", **at_timestep(0.5)), views_of(3)
    image = render(3)
    rgb = image.rgb.detach().clone()
    for tau in range(200):
        pixels = rgb.clone().requires_grad_()
        sds(Image(pixels, image.opacity, image.depth), views, tau, Streams(0, tau))[0].backward()
        rgb -= 2.0 / (1 + tau / 10) * pixels.grad
    mu = sds.prior.decode(sds.prior.mean(sds.prompts(views).positive["text"]))
    assert (rgb.permute(0, 3, 1, 2) - mu).abs().mean() < 0.03
