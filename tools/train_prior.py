"""Trains the built-in prior (a small text-to-image latent diffusion model) and its judge (a small CLIP).

Both learn from the procedural corpus of `tools.corpus`. Stages: corpus -> vae -> latents -> unet -> views, with judge
beside them, then export, sample and measure. Each is seeded, runs on one thread and ends after a set number of steps;
training resumes from its checkpoint in --out. The models are standard classes of diffusers and transformers
(Rombach et al., arXiv 2112.10752; Radford et al., arXiv 2103.00020).
Shapes: B images, H = W = 64 pixels in [-1, 1] at the models, latents [B, 4, 16, 16], L tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.corpus import COLOURS, SHAPES, caption, coarse_phrase, held_out, view_phrase
from tools.dataset import (PAIRS, PHRASES, Corpus, augmented, degraded, load_tokenizer, seen_colours, text_sizes,
                           write_corpus, write_tokenizer)
from tools.measure_prior import measure, sample
from tools.training import Plan, seeded, sheet, train

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

WEIGHTS = Path(__file__).parents[1] / "mpiprop" / "weights"
LATENT_CHANNELS, SHARDS = 4, 2
PLANS = {
    "vae": Plan(steps=1800, batch=16, rate=2e-3, seed=1, warmup=50, average=0.995),
    "unet": Plan(steps=9500, batch=32, rate=8e-4, seed=2),
    "views": Plan(steps=1200, batch=32, rate=4e-4, seed=6, warmup=50, average=0.99),
    "judge": Plan(steps=8000, batch=64, rate=1e-3, seed=3, decay=0.05, average=0.998),
}


# ---- the autoencoder ----

def new_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1,
        norm_num_groups=8, sample_size=64, mid_block_add_attention=False)


def error_of(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Returns L1 plus squared error plus half the L1 error of the differences between neighbouring pixels."""
    error = rebuilt - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def vae(out: Path) -> None:
    """Trains the autoencoder with a tiny KL; the first steps see crops, which cost a third of a whole image."""
    data, plan = Corpus.load(out), PLANS["vae"]
    model, views = seeded(plan.seed, new_vae), data.split(test=False)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = views[torch.randint(len(views), (plan.batch,), generator=generator)]
        images = data.paint(index, torch.randint(len(COLOURS), (plan.batch,), generator=generator), generator)
        if step < 0.7 * plan.steps:
            x, y = torch.randint(4, 21, (2,), generator=generator).tolist()
            images = images[..., y:y + 40, x:x + 40]
        images = 2 * degraded(images, generator) - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(images).latent_dist
            latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
            rebuilt = model.decode(latent).sample.float()
        return error_of(rebuilt, images) + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    save_vae(train(model, plan, loss, out / "vae.pt"), data, out)


def save_vae(model: nn.Module, data: Corpus, out: Path) -> None:
    """Writes out/models/vae with the factor that gives the test latents unit deviation, and a sheet of pairs."""
    generator, index = torch.Generator().manual_seed(1), data.split(test=True)[::4]
    images = data.paint(index, torch.randint(len(COLOURS), (len(index),), generator=generator), generator)
    with torch.no_grad():
        mean = torch.cat([model.encode(2 * some - 1).latent_dist.mean for some in images.split(32)])
        rebuilt = torch.cat([model.decode(some).sample for some in mean.split(32)]) / 2 + 0.5
    model.register_to_config(scaling_factor=round(1 / float(mean.std()), 4))
    model.save_pretrained(out / "models" / "vae")
    error = rebuilt.clamp(0, 1) - images
    print(f"vae: L1 {float(error.abs().mean()):.4f}, PSNR {-10 * math.log10(error.square().mean()):.1f} dB, "
          f"scaling factor {model.config.scaling_factor}", flush=True)
    sheet(torch.stack([images, rebuilt], dim=1)[:48].flatten(0, 1), 16, out / "vae.png")


# ---- the denoiser ----

class Denoiser(nn.Module):
    """The text encoder and the UNet, trained together: (noisy latents [B, 4, 16, 16], t [B], ids [B, L]) -> noise."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text = CLIPTextModel(CLIPTextConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, hidden_act="gelu",
            **sizes))
        self.unet = UNet2DConditionModel(
            sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1, norm_num_groups=16,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=128, attention_head_dim=(2, 3))
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU a fifth faster than the fused kernel at this size

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, t, self.text(ids).last_hidden_state).sample


def new_scheduler() -> DDPMScheduler:
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)


def latents(out: Path) -> None:
    """Writes out/latents/K.pt: scaled posterior means and stds [N, 2, 4, 16, 16] in seen colours, the colours [N]."""
    from diffusers import AutoencoderKL

    (out / "latents").mkdir(exist_ok=True)
    data, model = Corpus.load(out), AutoencoderKL.from_pretrained(out / "models" / "vae").eval()
    for shard in range(SHARDS):
        path, generator, moments = out / "latents" / f"{shard}.pt", torch.Generator().manual_seed(100 + shard), []
        if path.exists():
            continue
        colour = seen_colours(data.shape, generator)
        for index in torch.arange(len(data.shape)).split(64):
            images = 2 * data.paint(index, colour[index], generator) - 1
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                posterior = model.encode(images).latent_dist
            moments.append((torch.stack([posterior.mean, posterior.std], dim=1) * model.config.scaling_factor).half())
        torch.save({"moments": torch.cat(moments), "colour": colour}, path)
        print(f"latents: shard {shard}", flush=True)


FRONTS = ("chair", "rocket", "snowman", "car", "house", "mug", "airplane", "duck", "boat")  # other shapes look alike


def unet(out: Path) -> None:
    """Trains the denoiser on the cached latents, every shape and view alike."""
    tokenizer = out / "models" / "tokenizer"
    write_tokenizer(tokenizer)
    model = seeded(PLANS["unet"].seed, lambda: Denoiser(text_sizes(tokenizer)))
    train_denoiser(out, "unet", model, torch.ones(len(SHAPES)), full=0.75)


def views(out: Path) -> None:
    """Trains the denoiser on: objects with a front come three times as often, and nearly all captions name the view."""
    share = torch.tensor([3.0 if shape in FRONTS else 1.0 for shape in SHAPES])
    train_denoiser(out, "views", load_denoiser(out, out / "unet.pt"), share, full=0.9)


def load_denoiser(out: Path, checkpoint: Path) -> nn.Module:
    """Returns the moving average that `checkpoint` holds."""
    model, saved = Denoiser(text_sizes(out / "models" / "tokenizer")), torch.load(checkpoint)["average"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in saved.items()
                           if key.startswith("module.")})
    return model


def train_denoiser(out: Path, stage: str, model: nn.Module, share: Tensor, full: float) -> None:
    """Trains on the error of the noise, weighted min(SNR, 5) / SNR (arXiv 2303.09556).

    share [shapes]: how often each comes; full: the part of the captions with all the view's words (10 % are coarse).
    """
    data, plan, scheduler = Corpus.load(out), PLANS[stage], new_scheduler()
    tokens = load_tokenizer(out / "models" / "tokenizer")
    shards = [torch.load(path) for path in sorted((out / "latents").glob("*.pt"))]
    table = tokens([caption(*pair, view) for pair in PAIRS for view in PHRASES] + [""])
    fine, coarse = (torch.tensor([PHRASES.index(words(*angles)) for angles in data.angles.tolist()])
                    for words in (view_phrase, coarse_phrase))
    train_views = data.split(test=False)
    weight = share[data.shape[train_views]]
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = train_views[torch.multinomial(weight, plan.batch, replacement=True, generator=generator)]
        shard = shards[step % len(shards)]
        mean, std = shard["moments"][index].float().unbind(dim=1)
        noise, jitter = torch.randn(2, *mean.shape, generator=generator)
        t = torch.randint(1000, (plan.batch,), generator=generator)
        kind, drop = torch.rand(2, plan.batch, generator=generator)
        phrase = torch.where(kind < full, fine[index], torch.where(kind < full + 0.1, coarse[index], PHRASES.index("")))
        row = (data.shape[index] * len(COLOURS) + shard["colour"][index]) * len(PHRASES) + phrase
        ids = table[torch.where(drop < 0.1, len(table) - 1, row)]
        noisy = scheduler.add_noise(mean + std * jitter, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            error = (model(noisy, t, ids).float() - noise).square().mean(dim=(1, 2, 3))
        return (error * (snr[t].clamp_max(5) / snr[t])).mean()

    train(model, plan, loss, out / f"{stage}.pt")


# ---- the judge ----

def judge(out: Path) -> None:
    """Trains the CLIP judge: each image against the captions of all (shape, colour) pairs, those held out included."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    data, plan, folder = Corpus.load(out), PLANS["judge"], out / "models" / "judge"
    write_tokenizer(folder)
    tokens = load_tokenizer(folder)
    common = {"hidden_act": "gelu", "num_attention_heads": 4, "projection_dim": 96}
    text = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, **common, **text_sizes(folder)}
    vision = {"hidden_size": 144, "intermediate_size": 576, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8,
              **common}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=96)
    model, views = seeded(plan.seed, lambda: CLIPModel(config)), data.split(test=False)
    model.set_attn_implementation("eager")  # on a CPU twice as fast as the fused kernel at this size
    plain = tokens([caption(*pair) for pair in PAIRS])

    def logits(clip: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
        return clip(input_ids=texts, pixel_values=2 * images - 1).logits_per_image.float()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = views[torch.randint(len(views), (plan.batch,), generator=generator)]
        colour = torch.randint(len(COLOURS), (plan.batch,), generator=generator)
        images = augmented(data.paint(index, colour, generator, solid=0.75), generator)
        view = PHRASES[step // 2 % len(PHRASES)]
        texts = plain if step % 2 else tokens([caption(*pair, view) for pair in PAIRS])
        with torch.autocast("cpu", torch.bfloat16):
            scores = logits(model, images, texts)
        return F.cross_entropy(scores, data.shape[index] * len(COLOURS) + colour)

    finished = train(model, plan, loss, out / "judge.pt")
    generator, index = torch.Generator().manual_seed(1), data.split(test=True)
    colour = torch.randint(len(COLOURS), (len(index),), generator=generator)
    clean, truth = data.paint(index, colour, generator), data.shape[index] * len(COLOURS) + colour
    for name, images in (("clean", clean), ("augmented", augmented(clean, generator))):
        with torch.no_grad():
            found = torch.cat([logits(finished, some, plain).argmax(dim=-1) for some in images.split(64)])
        print(f"judge: top-1 of {len(PAIRS)} pairs on {len(index)} {name} test images: "
              f"{float((found == truth).float().mean()):.4f}", flush=True)
    finished.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3,
                       image_std=[0.5] * 3).save_pretrained(folder)


# ---- the finished folder ----

def export(out: Path, weights: Path = WEIGHTS) -> None:
    """Writes the prior as of the last checkpoint (its moving average), the judge and their words."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    tokenizer, checkpoint = out / "models" / "tokenizer", out / "views.pt"
    model = load_denoiser(out, checkpoint if checkpoint.exists() else out / "unet.pt")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "models" / "vae"), text_encoder=model.text, unet=model.unet,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer), scheduler=new_scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    pipeline.to(dtype=torch.float16).save_pretrained(weights / "prior")
    sources = {weights / "prior" / "tokenizer": tokenizer}
    configs = [weights / "prior" / "text_encoder" / "config.json"]
    if (out / "models" / "judge" / "config.json").exists():
        CLIPModel.from_pretrained(out / "models" / "judge").half().save_pretrained(weights / "judge")
        sources[weights / "judge"] = out / "models" / "judge"
        configs.append(weights / "judge" / "config.json")
    for target, source in sources.items():
        for pattern in ("*token*", "vocab.json", "merges.txt", "*processor*"):
            for file in source.glob(pattern):
                shutil.copy(file, target)
    vae_config = weights / "prior" / "vae" / "config.json"
    told = json.loads(vae_config.read_text())
    told.pop("_name_or_path", None)  # where it was trained
    vae_config.write_text(json.dumps(told, indent=2) + "\n")
    for config in configs:  # transformers computes in the type named here: float32, although the file holds halves
        config.write_text(config.read_text().replace("float16", "float32"))
    vocabulary = {"shapes": SHAPES, "colours": list(COLOURS), "held_out": {s: held_out(s) for s in SHAPES},
                  "views": [phrase for phrase in PHRASES if phrase]}
    (weights / "vocabulary.json").write_text(json.dumps(vocabulary, indent=1) + "\n")
    size = sum(file.stat().st_size for file in (weights / "prior").rglob("*") if file.is_file())
    print(f"export: prior {size / 1e6:.2f} MB", flush=True)


STAGES: dict[str, Callable[[Path], None]] = {
    "corpus": write_corpus, "vae": vae, "latents": latents, "unet": unet, "views": views, "judge": judge,
    "export": export, "sample": partial(sample, weights=WEIGHTS), "measure": partial(measure, weights=WEIGHTS)}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus, the checkpoints and the sheets")
    args = parser.parse_args()
    for stage in STAGES if args.stage == "all" else [args.stage]:
        STAGES[stage](args.out)


if __name__ == "__main__":
    main()
