"""What the built-in prior can do: sheets of its samples, the judge's verdict on them, and what its noise says of views.

Shapes: B images [B, 3, 64, 64] in [0, 1], latents [B, 4, 16, 16].
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from mpiprop.corpus.captions import OVERHEAD, caption, view_phrase
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import NAMES, held_out
from tools.dataset import PAIRS, PHRASES, SIZE, Corpus, Drawn, load_tokenizer
from tools.training import DEVICE, sheet


def sample(out: Path, weights: Path) -> None:
    """Writes out/samples.png, a row per name: four views in a seen look, then in one held out; prints a verdict."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPModel

    pipeline = StableDiffusionPipeline.from_pretrained(weights / "prior", safety_checker=None).to(DEVICE)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    views, images, pairs = ("front view", "left side view", "back view", OVERHEAD), [], []
    for number, name in enumerate(NAMES):
        seen = [look for look in LOOKS if look not in held_out(name)]
        for look in (seen[5 * number % len(seen)], held_out(name)[number % 3]):
            prompts = [caption(name, look, view) for view in views]
            images.append(pipeline(
                prompts, height=SIZE, width=SIZE, guidance_scale=6.0, num_inference_steps=30, output_type="pt",
                generator=torch.Generator().manual_seed(number)).images.float().cpu())
            pairs.append(PAIRS.index((name, look)))
    sheet(torch.cat(images), 4 * len(views), out / "samples.png")
    if not (weights / "judge" / "config.json").exists():
        return
    clip, tokens = CLIPModel.from_pretrained(weights / "judge"), load_tokenizer(weights / "judge")
    with torch.no_grad():
        scores = clip(input_ids=tokens([caption(*pair) for pair in PAIRS]), pixel_values=2 * torch.cat(images) - 1)
    found = scores.logits_per_image.argmax(dim=-1).reshape(-1, 2, len(views))
    right = (found == torch.tensor(pairs).reshape(-1, 2, 1)).float().mean(dim=(0, 2))
    print(f"sample: judge's top-1 of {len(PAIRS)} pairs: seen {right[0]:.3f}, held out {right[1]:.3f}", flush=True)


@torch.no_grad()
def measure(out: Path, weights: Path, count: int = 8) -> None:
    """Prints which of eight views, and of all looks, the denoiser takes unseen images in held-out looks for.

    The answer is the caption with the least error of the noise, as score distillation sees it (arXiv 2303.16203).
    """
    from diffusers import StableDiffusionPipeline

    model, data = StableDiffusionPipeline.from_pretrained(weights / "prior", safety_checker=None), Corpus.load(out)
    tokens, generator = load_tokenizer(weights / "prior" / "tokenizer"), torch.Generator().manual_seed(5)
    model.to(DEVICE)

    def best(latent: Tensor, captions: list[str]) -> Tensor:
        """Returns for each latent [count] the index of the best of its captions, listed latent by latent."""
        condition = model.text_encoder(tokens(captions).to(DEVICE)).last_hidden_state
        error, latent = torch.zeros(len(captions)), latent.repeat_interleave(len(captions) // len(latent), dim=0)
        for t in torch.tensor([300, 500, 700, 850]):
            noise = torch.randn(latent[0].shape, generator=generator).to(DEVICE).expand_as(latent)
            noisy = model.scheduler.add_noise(latent, noise, t.expand(len(latent)))
            found = model.unet(noisy, t.to(DEVICE), condition).sample
            error += (found - noise).square().mean(dim=(1, 2, 3)).cpu()
        return error.reshape(count, -1).argmin(dim=1)

    views, test = PHRASES[:8], data.split(test=True)
    for number, name in enumerate(NAMES):
        level = data.angles[test, 1].abs() < math.radians(25)
        level = test[(data.name[test] == number) & level & ~data.on_table[test]][:count]
        look = held_out(name)[number % 3]
        drawn = Drawn(level, torch.full((count,), LOOKS.index(look)), torch.full((count,), -1))
        images = data.paint(drawn, torch.Generator(DEVICE).manual_seed(number))
        latent = model.vae.encode(2 * images - 1).latent_dist.mean * model.vae.config.scaling_factor
        truth = torch.tensor([PHRASES.index(view_phrase(*angles)) for angles in data.angles[level].tolist()])
        view = best(latent, [caption(name, look, view) for _ in range(count) for view in views])
        off = (view - truth + 4) % 8 - 4  # in sectors of 45 deg
        named = best(latent, [caption(name, other, views[i]) for i in truth for other in LOOKS])
        print(f"measure: {name}: view right {float((off == 0).float().mean()):.2f}, within 45 deg "
              f"{float((off.abs() <= 1).float().mean()):.2f}, held-out look right "
              f"{float((named == LOOKS.index(look)).float().mean()):.2f}", flush=True)
