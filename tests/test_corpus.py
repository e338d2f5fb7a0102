"""The corpus obeys the house's conventions; the shipped prior and judge are complete, small, and standard classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mpiprop.corpus.captions import VIEWS, caption, coarse_phrase, view_phrase
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import NAMES, SHAPES, held_out, thing
from tools.corpus import render
from tools.tracer import Shots, toward

WEIGHTS = Path(__file__).parents[1] / "mpiprop" / "weights"


def shots(*degrees: tuple[float, float], distance: float = 1.8) -> Shots:
    azimuth, elevation = torch.deg2rad(torch.tensor(degrees)).unbind(dim=1)
    count = len(degrees)
    return Shots(azimuth, elevation, torch.full((count,), distance), torch.full((count,), math.radians(50)),
                 torch.zeros(count, 3), toward(azimuth, elevation), torch.full((count,), 0.5))


def mean_pixel(mask: torch.Tensor) -> tuple[float, float]:
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return float(rows.float().mean()), float(columns.float().mean())


def project(point: tuple[float, float, float], azimuth: float, elevation: float, size: int = 64) -> tuple[float, float]:
    """The row and column of a world point: the image's right is (-sin az, cos az, 0) in the world."""
    a, e = math.radians(azimuth), math.radians(elevation)
    right = (-math.sin(a), math.cos(a), 0.0)
    outward = (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
    up = (-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e))
    x, y, depth = (sum(u * v for u, v in zip(point, axis)) for axis in (right, up, outward))
    scale = size / (2 * math.tan(math.radians(25))) / (1.8 - depth)
    return size / 2 - 0.5 - y * scale, size / 2 - 0.5 + x * scale


def white(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb - 0.96).abs().amax(dim=-1) < 0.1


def yellow(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb[..., 0] > 0.75) & (rgb[..., 1] > 0.6) & (rgb[..., 2] < 0.45)


def glass(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb[..., 0] < 0.65) & (rgb[..., 1] > 0.5) & (rgb[..., 2] > 0.6)


@pytest.mark.parametrize("shape, part, point, views", [
    ("mug", white, (0.355, 0.0, 0.0), [(0, 0), (15, 10), (-15, 20)]),
    ("car", yellow, (0.58, 0.0, -0.04), [(0, 5), (10, 5)]),
    ("rocket", glass, (0.225, 0.0, 0.08), [(0, 0), (15, 10)]),
])
def test_marks_on_the_front_appear_where_the_projection_puts_them(shape, part, point, views):
    whole = thing(shape)
    point = tuple((p - m) * whole.scale for p, m in zip(point, whole.middle))
    rgb, alpha = render(shape, "purple", shots(*views), torch.zeros(len(views), 3))
    for view, image, covered in zip(views, rgb, alpha):
        found = mean_pixel(part(image) & (covered[..., 0] > 0.99))
        assert found == pytest.approx(project(point, *view), abs=1.6)


@pytest.mark.parametrize("azimuth, elevation, full, coarse", [
    (0, 0, "front view", "front view"),
    (50, 0, "front left view", "side view"),
    (90, 30, "left side view from above", "side view"),
    (-90, 0, "right side view", "side view"),
    (-179, 10, "back view", "back view"),
    (181, 10, "back view", "back view"),
    (-40, 0, "front right view", "front view"),
    (10, 70, "overhead view", "overhead view"),
])
def test_view_words(azimuth, elevation, full, coarse):
    angles = math.radians(azimuth), math.radians(elevation)
    assert (view_phrase(*angles), coarse_phrase(*angles)) == (full, coarse)


def test_the_shipped_words_are_single_tokens_and_any_text_is_tokenised():
    from transformers import CLIPTokenizer

    for part in ("prior/tokenizer", "judge"):
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / part)
        for shape, colour, view in zip(NAMES, LOOKS * 3, VIEWS * 2):
            text = caption(shape, colour, view)
            words = [token.removesuffix("</w>") for token in tokenizer.tokenize(text)]
            assert words == text.replace(",", " ,").split()
        assert len(tokenizer("naïve 木 §!", padding="max_length", truncation=True).input_ids) == 16


def test_the_shipped_prior_loads_as_standard_classes_and_encodes_its_corpus():
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    prior = WEIGHTS / "prior"
    vae = AutoencoderKL.from_pretrained(prior, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(prior, subfolder="unet")
    text = CLIPTextModel.from_pretrained(prior, subfolder="text_encoder")
    scheduler = DDPMScheduler.from_pretrained(prior, subfolder="scheduler")
    images = 2 * render("car", "red", shots((0, 0), (60, 20)), torch.ones(2, 3))[0].movedim(-1, 1) - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        rebuilt = vae.decode(latents / vae.config.scaling_factor).sample
        condition = text(torch.zeros(2, 16, dtype=torch.long)).last_hidden_state
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([900, 900])
        predicted = unet(scheduler.add_noise(latents, noise, t), t, condition).sample
    assert latents.shape == (2, 4, 16, 16) and latents.dtype == torch.float32
    assert (rebuilt - images).abs().mean() < 0.06  # of the range 2
    assert (predicted - noise).square().mean() < 0.2  # a network that knows nothing has 1


def test_the_judge_names_what_it_sees():
    from transformers import CLIPModel, CLIPTokenizer

    judge, tokenizer = CLIPModel.from_pretrained(WEIGHTS / "judge"), CLIPTokenizer.from_pretrained(WEIGHTS / "judge")
    pairs = [(shape, colour) for shape in NAMES for colour in LOOKS]
    ids = tokenizer([caption(*pair) for pair in pairs], padding="max_length", return_tensors="pt").input_ids
    wanted = [pairs.index((shape, LOOKS[i % len(LOOKS)])) for i, shape in enumerate(SHAPES)]
    images = torch.cat([render(*pairs[i], shots((30, 20)), torch.ones(1, 3))[0] for i in wanted]).movedim(-1, 1)
    with torch.no_grad():
        scores = judge(input_ids=ids, pixel_values=2 * images - 1).logits_per_image
    assert (scores.argmax(dim=-1) == torch.tensor(wanted)).float().mean() > 0.9


def test_weights_are_small_and_the_vocabulary_is_the_corpus():
    def size(folder: str) -> float:
        return sum(f.stat().st_size for f in (WEIGHTS / folder).rglob("*") if f.is_file()) / 1e6

    assert size("prior") < 16 and size("judge") < 4 and size(".") < 60
    vocabulary = json.loads((WEIGHTS / "vocabulary.json").read_text())
    assert vocabulary["shapes"] == list(NAMES) and vocabulary["colours"] == list(LOOKS)
    assert vocabulary["held_out"] == {name: list(held_out(name)) for name in NAMES}
