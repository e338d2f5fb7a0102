"""Trains the built-in prior (a small text-to-image latent diffusion model) and its judge (a small CLIP) on `tools.corpus`.

Every stage is seeded, runs on one thread, logs to standard output, resumes from its checkpoint in --out and ends after a set
number of steps: corpus -> vae -> latents -> unet -> export, and judge beside them. The models are the standard classes
of diffusers and transformers (Rombach et al., arXiv 2112.10752; Radford et al., arXiv 2103.00020).
Shapes: N corpus views, B images of a batch, H = W = 64 pixels, latents [B, 4, 16, 16], L = 16 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.corpus import (COLOURS, OVERHEAD, SHAPES, VIEWS, Layers, caption, coarse_phrase, draw_backgrounds, draw_shots,
                          held_out, trace, view_phrase)

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

WEIGHTS = Path(__file__).parents[1] / "mpiprop" / "weights"
VIEWS_PER_SHAPE, SHARDS, LATENT_CHANNELS, TOKENS = 2400, 2, 4, 16
PALETTE = torch.tensor(list(COLOURS.values()))


@dataclass(frozen=True)
class Plan:
    """One training run: the learning rate warms up over `warmup` steps and falls to zero along a cosine."""

    steps: int
    batch: int
    rate: float
    seed: int
    warmup: int = 100
    decay: float = 1e-2
    average: float = 0.999  # of the exponential moving average of the weights

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1)))


# ---- data ----

def corpus(out: Path) -> None:
    """Writes out/corpus/SHAPE.pt: layers as bytes [N, H, W, 5] (fixed rgb, named, alpha) and the cameras' angles [N, 2]."""
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    for seed, shape in enumerate(SHAPES):
        path = out / "corpus" / f"{shape}.pt"
        if path.exists():
            continue
        shots, layers = draw_shots(VIEWS_PER_SHAPE, torch.Generator().manual_seed(seed)), []
        for part in range(0, VIEWS_PER_SHAPE, 16):
            some = trace(shape, type(shots)(*(getattr(shots, name)[part:part + 16] for name in vars(shots))))
            layers.append((torch.cat([some.fixed, some.named, some.alpha], dim=-1) * 255).round().byte())
        torch.save({"layers": torch.cat(layers), "angles": torch.stack([shots.azimuth, shots.elevation], dim=-1)}, path)
        print(f"corpus: {shape}", flush=True)


@dataclass(frozen=True)
class Corpus:
    """All views: layers [N, H, W, 5] bytes, shape indices [N], angles [N, 2]; the last view of every 40 is for tests."""

    layers: Tensor
    shape: Tensor
    angles: Tensor

    @staticmethod
    def load(out: Path) -> Corpus:
        files = [torch.load(out / "corpus" / f"{shape}.pt") for shape in SHAPES]
        return Corpus(torch.cat([f["layers"] for f in files]),
                      torch.arange(len(SHAPES)).repeat_interleave(VIEWS_PER_SHAPE), torch.cat([f["angles"] for f in files]))

    def split(self, test: bool) -> Tensor:
        return torch.nonzero((torch.arange(len(self.shape)) % 40 == 39) == test)[:, 0]

    def paint(self, index: Tensor, colour: Tensor, generator: torch.Generator, solid: float = 1.0) -> Tensor:
        """Returns images [B, 3, H, W] in [0, 1] of the views `index` in the colours (indices [B]) on new backgrounds;
        `solid` is the least opacity, drawn per image."""
        parts = self.layers[index].float() / 255 * torch.empty(len(index), 1, 1, 1).uniform_(solid, 1, generator=generator)
        layers = Layers(parts[..., :3], parts[..., 3:4], parts[..., 4:])
        return layers.over(PALETTE[colour], draw_backgrounds(len(index), parts.shape[1], generator)).movedim(-1, 1)


def seen_colours(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a random colour index for each shape index [B] among those that are not held out for it."""
    allowed = torch.tensor([[name not in held_out(s) for name in COLOURS] for s in SHAPES]).float()
    return torch.multinomial(allowed[shape], 1, generator=generator)[:, 0]


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images [B, C, H, W] of which two thirds are degraded as early renders are: blurred, noisy or greyed."""
    kind = torch.rand(len(images), generator=generator)
    small = F.interpolate(images, scale_factor=float(0.25 + 0.5 * torch.rand((), generator=generator)), mode="area")
    soft = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    grey = torch.lerp(images, torch.rand(len(images), 3, 1, 1, generator=generator), 0.7)
    noisy = images + 0.15 * torch.randn(images.shape, generator=generator) * torch.rand(len(images), 1, 1, 1, generator=generator)
    choose = [(kind[:, None, None, None] < bound) for bound in (0.2, 0.3, 0.45)]
    return torch.where(choose[0], soft, torch.where(choose[1], grey, torch.where(choose[2], noisy, images))).clamp(0, 1)


# ---- training ----

def train(name: str, model: nn.Module, plan: Plan, loss: Callable[[int, torch.Generator], Tensor], out: Path) -> nn.Module:
    """Returns the moving average of `model` after `plan`; `loss(step, generator)` draws a batch. Resumes from out/NAME.pt."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, plan.factor)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(plan.average), use_buffers=False)
    states, path, start = {"model": model, "optimiser": optimiser, "schedule": schedule, "average": average}, out / f"{name}.pt", 0
    if path.exists():
        saved = torch.load(path)
        start = saved.pop("step")
        for key, state in saved.items():
            states[key].load_state_dict(state)
    begun, mean = time.monotonic(), None
    for step in range(start, plan.steps):
        optimiser.zero_grad(set_to_none=True)
        value = loss(step, torch.Generator().manual_seed(plan.seed * 10**6 + step))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step == 10 * plan.warmup // 4:  # the first steps say nothing: the average starts here
            average.module.load_state_dict(model.state_dict())
        average.update_parameters(model)
        mean = value.item() if mean is None else 0.98 * mean + 0.02 * value.item()
        if (step + 1) % 50 == 0:
            print(f"{name}: step {step + 1}/{plan.steps} loss {mean:.4f} {time.monotonic() - begun:.0f} s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == plan.steps:
            torch.save({"step": step + 1, **{key: state.state_dict() for key, state in states.items()}}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
    return average.module.eval()


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def new_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96), layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=8, sample_size=64,
        mid_block_add_attention=False)


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


def vae(out: Path, plan: Plan) -> None:
    """Trains the autoencoder: L1, squared and edge error, tiny KL; first on crops, which cost a third."""
    data, model = Corpus.load(out), seeded(plan.seed, new_vae)
    views = data.split(test=False)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = views[torch.randint(len(views), (plan.batch,), generator=generator)]
        images = data.paint(index, torch.randint(len(COLOURS), (plan.batch,), generator=generator), generator)
        if step < 0.7 * plan.steps:
            x, y = torch.randint(4, 21, (2,), generator=generator).tolist()
            images = images[..., y:y + 40, x:x + 40]
        images = 2 * blurred(images, generator) - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(images).latent_dist
            latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
            rebuilt = model.decode(latent).sample.float()
        error = rebuilt - images
        sharp = sum((a - b).abs().mean() for a, b in zip(edges(rebuilt), edges(images)))
        return error.abs().mean() + error.square().mean() + 0.5 * sharp + 1e-4 * posterior.kl().mean() / 1024

    finished = train("vae", model, plan, loss, out)
    index = data.split(test=True)[::4]
    images = data.paint(index, torch.randint(len(COLOURS), (len(index),), generator=torch.Generator().manual_seed(1)),
                        torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean = torch.cat([finished.encode(2 * some - 1).latent_dist.mean for some in images.split(32)])
        rebuilt = torch.cat([finished.decode(some).sample for some in mean.split(32)]) / 2 + 0.5
    finished.register_to_config(scaling_factor=round(1 / float(mean.std()), 4))
    finished.save_pretrained(out / "models" / "vae")
    mse = (rebuilt.clamp(0, 1) - images).square().mean()
    print(f"vae: L1 {float((rebuilt - images).abs().mean()):.4f}, PSNR {-10 * math.log10(mse):.1f} dB, "
          f"scaling factor {finished.config.scaling_factor}, latent mean {mean.mean((0, 2, 3)).tolist()}", flush=True)
    sheet(torch.stack([images, rebuilt], 1)[:48].flatten(0, 1), 16, out / "vae.png")


def sheet(images: Tensor, columns: int, path: Path) -> None:
    """Writes images [B, 3, H, W] in [0, 1] as a contact sheet at twice their size."""
    from PIL import Image

    rows = [torch.cat(list(row), dim=-1) for row in images.split(columns)]
    pixels = (torch.cat(rows, dim=-2).clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.NEAREST).save(path)


# ---- the words ----

def save_tokenizer(folder: Path) -> None:
    """Writes a CLIPTokenizer of bytes and the corpus' words: byte pairs are merged until every word is one token."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = sorted({w for s in SHAPES for c in COLOURS for v in (*VIEWS, "side view") for w in caption(s, c, v).replace(",", " ,").split()})
    splits, merges = [[*w[:-1], w[-1] + "</w>"] for w in words], []
    while pairs := Counter(pair for split in splits for pair in zip(split, split[1:])):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        splits = [_merged(split, best) for split in splits]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))


def _merged(split: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in split:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def load_tokenizer(out: Path) -> Callable[[list[str]], Tensor]:
    """Returns the function from captions to token ids [B, L]; the tokenizer is written on first use."""
    from transformers import CLIPTokenizer

    folder = out / "models" / "tokenizer"
    if not folder.exists():
        save_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return lambda texts: tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids


def text_sizes(out: Path) -> dict[str, int]:
    size = len(json.loads((out / "models" / "tokenizer" / "vocab.json").read_text()))
    return {"vocab_size": size, "max_position_embeddings": TOKENS, "bos_token_id": size - 2, "eos_token_id": size - 1,
            "pad_token_id": size - 1}


# ---- the judge ----

def judge(out: Path, plan: Plan) -> None:
    """Trains the CLIP judge: each image against the captions of all (shape, colour) pairs, those held out included."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    data, tokens = Corpus.load(out), load_tokenizer(out)
    common = {"hidden_act": "gelu", "num_attention_heads": 4, "projection_dim": 96}
    config = CLIPConfig(
        text_config={"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, **common, **text_sizes(out)},
        vision_config={"hidden_size": 144, "intermediate_size": 576, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8, **common},
        projection_dim=96)
    model = seeded(plan.seed, lambda: CLIPModel(config))
    views, pairs = data.split(test=False), [(s, c) for s in SHAPES for c in COLOURS]
    plain = tokens([caption(s, c) for s, c in pairs])

    def logits(clip: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
        return clip(input_ids=texts, pixel_values=2 * images - 1).logits_per_image.float()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = views[torch.randint(len(views), (plan.batch,), generator=generator)]
        colour = torch.randint(len(COLOURS), (plan.batch,), generator=generator)
        images = augmented(data.paint(index, colour, generator, solid=0.6), generator)
        view = VIEWS[step // 2 % len(VIEWS)]
        texts = plain if step % 2 else tokens([caption(s, c, view) for s, c in pairs])
        with torch.autocast("cpu", torch.bfloat16):
            scores = logits(model, images, texts)
        return F.cross_entropy(scores, data.shape[index] * len(COLOURS) + colour)

    finished = train("judge", model, plan, loss, out)
    generator, index = torch.Generator().manual_seed(1), data.split(test=True)
    colour = torch.randint(len(COLOURS), (len(index),), generator=generator)
    clean, truth = data.paint(index, colour, generator), data.shape[index] * len(COLOURS) + colour
    for name, images in (("clean", clean), ("augmented", augmented(clean, generator))):
        with torch.no_grad():
            right = torch.cat([logits(finished, some, plain).argmax(-1) for some in images.split(64)]) == truth
        print(f"judge: top-1 of {len(pairs)} pairs on {len(index)} {name} test images: {float(right.float().mean()):.4f}", flush=True)
    finished.save_pretrained(out / "models" / "judge")
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3,
                       image_std=[0.5] * 3).save_pretrained(out / "models" / "judge")
    save_tokenizer(out / "models" / "judge")


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images [B, 3, H, W] zoomed, shifted, with other brightness and saturation, and degraded by `blurred`."""
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(images), *shape, generator=generator)

    zoom, shift = uniform(0.7, 1.4), uniform(-0.15, 0.15, 2)
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = zoom, zoom, shift
    moved = F.grid_sample(images, F.affine_grid(affine, list(images.shape), align_corners=False), padding_mode="border",
                          align_corners=False)
    grey = moved.mean(dim=1, keepdim=True)
    coloured = torch.lerp(grey, moved, uniform(0.7, 1.15, 1, 1, 1)) * uniform(0.7, 1.2, 1, 1, 1)
    return blurred(coloured.clamp(0, 1), generator)


# ---- the denoiser ----

class Denoiser(nn.Module):
    """The text encoder and the UNet, trained together: (noisy latents [B, 4, 16, 16], t [B], ids [B, L]) -> noise."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text = CLIPTextModel(CLIPTextConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, hidden_act="gelu", **sizes))
        self.unet = UNet2DConditionModel(
            sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1, cross_attention_dim=128, attention_head_dim=(2, 3), norm_num_groups=16)
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU a third faster than the fused kernel at this size

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, t, self.text(ids).last_hidden_state).sample


def new_scheduler() -> DDPMScheduler:
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)


def latents(out: Path) -> None:
    """Writes out/latents/K.pt: scaled posterior means and stds [N, 4, 16, 16] of all views in seen colours, colours [N]."""
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


def unet(out: Path, plan: Plan) -> None:
    """Trains the denoiser on the cached latents: error of the noise, weighted min(SNR, 5) / SNR (arXiv 2303.09556)."""
    data, scheduler, tokens = Corpus.load(out), new_scheduler(), load_tokenizer(out)
    shards = [torch.load(path) for path in sorted((out / "latents").glob("*.pt"))]
    phrases = [*VIEWS, "side view", ""]
    table = tokens([caption(s, c, view) for s in SHAPES for c in COLOURS for view in phrases] + [""])
    full, coarse = (torch.tensor([phrases.index(words(*a)) for a in data.angles.tolist()]) for words in (view_phrase, coarse_phrase))
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    views, model = data.split(test=False), seeded(plan.seed, lambda: Denoiser(text_sizes(out)))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index, shard = views[torch.randint(len(views), (plan.batch,), generator=generator)], shards[step % len(shards)]
        mean, std = shard["moments"][index].float().unbind(dim=1)
        noise, jitter = torch.randn(2, *mean.shape, generator=generator)
        t, kind, drop = torch.randint(1000, (plan.batch,), generator=generator), *torch.rand(2, plan.batch, generator=generator)
        phrase = torch.where(kind < 0.75, full[index], torch.where(kind < 0.85, coarse[index], len(phrases) - 1))
        row = (data.shape[index] * len(COLOURS) + shard["colour"][index]) * len(phrases) + phrase
        ids = table[torch.where(drop < 0.1, len(table) - 1, row)]
        noisy = scheduler.add_noise(mean + std * jitter, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            error = (model(noisy, t, ids).float() - noise).square().mean(dim=(1, 2, 3))
        return (error * (snr[t].clamp_max(5) / snr[t])).mean()

    train("unet", model, plan, loss, out)


# ---- the finished folder ----

def export(out: Path, weights: Path = WEIGHTS) -> None:
    """Writes the prior as of out/unet.pt (its moving average) and the judge to the package in half precision."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    model, saved = Denoiser(text_sizes(out)), torch.load(out / "unet.pt")
    averaged = nn.Module()
    averaged.module = model
    averaged.load_state_dict({k: v for k, v in saved["average"].items() if k != "n_averaged"})
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "models" / "vae"), text_encoder=model.text, unet=model.unet,
        tokenizer=CLIPTokenizer.from_pretrained(out / "models" / "tokenizer"), scheduler=new_scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    pipeline.to(dtype=torch.float16).save_pretrained(weights / "prior")
    folders = [(out / "models" / "tokenizer", weights / "prior" / "tokenizer")]
    if (out / "models" / "judge").exists():
        from transformers import CLIPModel
        CLIPModel.from_pretrained(out / "models" / "judge").half().save_pretrained(weights / "judge")
        folders.append((out / "models" / "judge", weights / "judge"))
    for source, target in folders:
        for file in [*source.glob("*token*"), *source.glob("vocab.json"), *source.glob("merges.txt"), *source.glob("*processor*")]:
            shutil.copy(file, target)
    for config in (weights / "prior" / "text_encoder" / "config.json", weights / "judge" / "config.json"):
        if config.exists():  # transformers loads in the type named here: compute in float32, whatever the file holds
            config.write_text(config.read_text().replace("float16", "float32"))
    (weights / "vocabulary.json").write_text(json.dumps({
        "shapes": SHAPES, "colours": list(COLOURS), "held_out": {s: held_out(s) for s in SHAPES},
        "views": [*VIEWS, "side view"]}, indent=1) + "\n")
    size = sum(f.stat().st_size for f in (weights / "prior").rglob("*") if f.is_file()) / 2**20
    print(f"export: step {saved['step']}, prior {size:.2f} MiB", flush=True)


def sample(out: Path, weights: Path = WEIGHTS) -> None:
    """Writes out/samples.png, a row per shape: four views in a seen colour, then in one held out; prints the judge's verdict."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    pipeline = StableDiffusionPipeline.from_pretrained(weights / "prior", torch_dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    views, images, pairs = ("front view", "left side view", "back view", OVERHEAD), [], []
    for number, shape in enumerate(SHAPES):
        seen = [c for c in COLOURS if c not in held_out(shape)][number % 6]
        for colour in (seen, held_out(shape)[number % 2]):
            result = pipeline([caption(shape, colour, view) for view in views], height=64, width=64, guidance_scale=6.0,
                              num_inference_steps=30, generator=torch.Generator().manual_seed(number), output_type="pt")
            images.append(result.images)
            pairs.append((shape, colour))
    sheet(torch.cat(images), 2 * len(views), out / "samples.png")
    if not (weights / "judge").exists():
        return
    clip, tokenizer = CLIPModel.from_pretrained(weights / "judge"), CLIPTokenizer.from_pretrained(weights / "judge")
    every = [(s, c) for s in SHAPES for c in COLOURS]
    ids = tokenizer([caption(*pair) for pair in every], padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        verdict = clip(input_ids=ids, pixel_values=2 * torch.cat(images) - 1).logits_per_image.argmax(-1)
    truth = torch.tensor([every.index(pair) for pair in pairs]).repeat_interleave(len(views))
    right = (verdict == truth).float().reshape(-1, 2, len(views)).mean(dim=(0, 2))
    print(f"sample: judge's top-1 of {len(every)} pairs: seen {right[0]:.3f}, held out {right[1]:.3f}", flush=True)


PLANS = {
    "vae": Plan(steps=1800, batch=16, rate=2e-3, seed=1, warmup=50, average=0.995),
    "unet": Plan(steps=7500, batch=32, rate=8e-4, seed=2),
    "judge": Plan(steps=2000, batch=64, rate=1e-3, seed=3, average=0.998, decay=0.05),
}
STAGES: dict[str, Callable[[Path], None]] = {
    "corpus": corpus, "vae": partial(vae, plan=PLANS["vae"]), "latents": latents, "unet": partial(unet, plan=PLANS["unet"]),
    "judge": partial(judge, plan=PLANS["judge"]), "export": export, "sample": sample}


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
