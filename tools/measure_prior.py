"""What the built-in prior can do: sheets of its samples, the judge's verdict on them, and what its noise says of views.

Shapes: B images [B, 3, 64, 64] in [0, 1], latents [B, 4, 16, 16].
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from tools.corpus import COLOURS, OVERHEAD, SHAPES, caption, held_out, view_phrase
from tools.dataset import PAIRS, PHRASES, Corpus, load_tokenizer
from tools.training import sheet


def sample(out: Path, weights: Path) -> None:
    """Writes out/samples.png, a row per shape: four views in a seen colour, then in one held out; prints a verdict."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPModel

    pipeline = StableDiffusionPipeline.from_pretrained(weights / "prior", safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    views, images, pairs = ("front view", "left side view", "back view", OVERHEAD), [], []
    for number, shape in enumerate(SHAPES):
        seen = [colour for colour in COLOURS if colour not in held_out(shape)]
        for colour in (seen[number % len(seen)], held_out(shape)[number % 2]):
            prompts = [caption(shape, colour, view) for view in views]
            images.append(pipeline(
                prompts, height=64, width=64, guidance_scale=6.0, num_inference_steps=30, output_type="pt",
                generator=torch.Generator().manual_seed(number)).images)
            pairs.append(PAIRS.index((shape, colour)))
    sheet(torch.cat(images), 2 * len(views), out / "samples.png")
    clip, tokens = CLIPModel.from_pretrained(weights / "judge"), load_tokenizer(weights / "judge")
    with torch.no_grad():
        scores = clip(input_ids=tokens([caption(*pair) for pair in PAIRS]), pixel_values=2 * torch.cat(images) - 1)
    found = scores.logits_per_image.argmax(dim=-1).reshape(-1, 2, len(views))
    right = (found == torch.tensor(pairs).reshape(-1, 2, 1)).float().mean(dim=(0, 2))
    print(f"sample: judge's top-1 of {len(PAIRS)} pairs: seen {right[0]:.3f}, held out {right[1]:.3f}", flush=True)


@torch.no_grad()
def measure(out: Path, weights: Path, count: int = 8) -> None:
    """Prints which of eight views, and of eight colours, the denoiser takes unseen images in held-out colours for.

    The answer is the caption with the least error of the noise, as score distillation sees it (arXiv 2303.16203).
    """
    from diffusers import StableDiffusionPipeline

    model, data = StableDiffusionPipeline.from_pretrained(weights / "prior", safety_checker=None), Corpus.load(out)
    tokens, generator = load_tokenizer(weights / "prior" / "tokenizer"), torch.Generator().manual_seed(5)

    def best(latent: Tensor, captions: list[str]) -> Tensor:
        """Returns for each latent [count] the index of the best of its captions, listed latent by latent."""
        condition, error = model.text_encoder(tokens(captions)).last_hidden_state, torch.zeros(len(captions))
        latent = latent.repeat_interleave(len(captions) // len(latent), dim=0)
        for t in torch.tensor([300, 500, 700, 850]):
            noise = torch.randn(latent[0].shape, generator=generator).expand_as(latent)
            noisy = model.scheduler.add_noise(latent, noise, t.expand(len(latent)))
            error += (model.unet(noisy, t, condition).sample - noise).square().mean(dim=(1, 2, 3))
        return error.reshape(count, -1).argmin(dim=1)

    views, test = PHRASES[:8], data.split(test=True)
    for number, shape in enumerate(SHAPES):
        level = test[(data.shape[test] == number) & (data.angles[test, 1].abs() < math.radians(25))][:count]
        colour = list(COLOURS).index(held_out(shape)[number % 2])
        images = data.paint(level, torch.full((count,), colour), generator)
        latent = model.vae.encode(2 * images - 1).latent_dist.mean * model.vae.config.scaling_factor
        truth = torch.tensor([PHRASES.index(view_phrase(*angles)) for angles in data.angles[level].tolist()])
        view = best(latent, [caption(shape, held_out(shape)[number % 2], view) for _ in range(count) for view in views])
        off = (view - truth + 4) % 8 - 4  # in sectors of 45 deg
        named = best(latent, [caption(shape, name, views[i]) for i in truth for name in COLOURS])
        print(f"measure: {shape}: view right {float((off == 0).float().mean()):.2f}, within 45 deg "
              f"{float((off.abs() <= 1).float().mean()):.2f}, held-out colour right "
              f"{float((named == colour).float().mean()):.2f}", flush=True)
