"""Refinement against a DDIM loop written out on the closed-form prior, and its purity."""

import math

import pytest
import torch

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.guidance.refine import Refine
from mpiprop.priors.closed_form import ClosedForm
from mpiprop.conditioning.text import Plain, TextConditions
from mpiprop.views.cameras import Image, Views, orbit

PROMPT, SIZE, B = "a red chair", 8, 3
STREAMS = Streams(3, 7)


def refine(**keys: object) -> Refine:
    prior = ClosedForm("cpu", size=SIZE)
    return Refine(prior, TextConditions.of(prior, Plain(), PROMPT), **keys)


def views(n: int = B) -> Views:
    return orbit(torch.linspace(-3, 3, n), 0.2, 1.8, 0.8, (SIZE, SIZE))


def image(size: int = SIZE) -> Image:
    rgb = torch.rand(B, size, size, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    return Image(rgb, torch.ones(B, size, size, 1), torch.ones(B, size, size, 1))


@pytest.mark.parametrize(("strength", "count"), [(0.8, 10), (0.95, 3), (1.0, 1)])
def test_the_target_is_that_of_a_ddim_loop(strength, count):
    """Song et al. 2021, Eq. (12), sigma = 0, on the exact eps of a Gaussian whose mean guidance moves: 50 steps of 20, of which
    the last `count` are done."""
    scale, guidance = 3.0, refine(scale=3.0, strength=strength)
    prior, render = guidance.prior, image()
    times = [1 + 20 * i for i in reversed(range(count))]
    assert guidance.times(0) == times
    loss, numbers = guidance(render, views(), 0, STREAMS)
    loss.backward()

    cond, uncond = (prior.mean(prior.embed([text])).double() for text in (PROMPT, ""))
    mean = uncond + scale * (cond - uncond)
    x = render.rgb.detach().permute(0, 3, 1, 2).double() * 2 - 1
    bar = prior.alpha_bar[times[0]].item()
    x = math.sqrt(bar) * x + math.sqrt(1 - bar) * normal(STREAMS("noise"), B, 3, SIZE, SIZE)
    for t in times:
        bar = prior.alpha_bar[t].item()
        following = prior.alpha_bar[t - 20].item() if t > 1 else 1.0
        eps = math.sqrt(1 - bar) * (x - math.sqrt(bar) * mean) / (bar * prior.spread ** 2 + 1 - bar)
        x = math.sqrt(following / bar) * x + (math.sqrt(1 - following) - math.sqrt(following * (1 - bar) / bar)) * eps
    target = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    difference = render.rgb.detach() - target
    assert loss.item() == pytest.approx(difference.square().mean().item(), rel=1e-4)
    torch.testing.assert_close(render.rgb.grad.double(), 2 * difference / difference.numel(), atol=1e-7, rtol=1e-3)
    assert numbers == {"refine": loss.item(), "t": times[0]}


def test_parts_of_a_batch_add_up_and_every_size_of_render_will_do():
    guidance, render = refine(), image(16)
    whole = guidance(render, views(), 0, STREAMS)[0]
    parts = 0.0
    for rows in (range(0, 2), range(2, 3)):
        some = slice(rows.start, rows.stop)
        part = Image(render.rgb[some], render.opacity[some], render.depth[some])
        parts += len(rows) / B * guidance(part, views()[some], 0, STREAMS.part(rows, B))[0]
    assert parts.item() == pytest.approx(whole.item(), rel=1e-5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="steps 0"):
        refine(steps=0)
    with pytest.raises(UserError, match="strength: 1.5 at step 3"):
        refine(strength=1.5)(image(), views(), 3, STREAMS)
