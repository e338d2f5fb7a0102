"""Trains the built-in prior (a small text-to-image latent diffusion model) and its judge (a small CLIP).

Both learn from the procedural corpus of `mpiprop.corpus`. Stages: corpus -> vae -> latents -> unet, with judge beside
them, then export, sample and measure. Each is seeded and ends after a set number of steps; training resumes from its
checkpoint in --out. On one CPU thread, or on the GPU if there is one. The models are standard classes of diffusers and
transformers (Rombach et al., arXiv 2112.10752; Radford et al., arXiv 2103.00020).
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

from mpiprop.corpus.captions import caption
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import NAMES, SCENES, held_out
from tools.dataset import (PAIRS, PHRASES, SIZE, Corpus, Drawn, augmented, degraded, load_tokenizer, text_sizes,
                           write_corpus, write_tokenizer)
from tools.measure_prior import measure, sample
from tools.training import (DEVICE, Plan, averaged, half_precision, on_device, on_this_device, seeded, sheet, train,
                            weighted)

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

WEIGHTS = Path(__file__).parents[1] / "mpiprop" / "weights"
LATENT_CHANNELS, SHARDS = 4, 2
PLANS = on_this_device({
    "vae": Plan(steps=9000, batch=16, rate=1.5e-3, seed=1, warmup=50, average=0.998),
    "unet": Plan(steps=28000, batch=32, rate=6e-4, seed=2, average=0.9995),
    "judge": Plan(steps=16000, batch=64, rate=8e-4, seed=3, decay=0.05, average=0.998),
}, gpu={"vae": (9000, 48), "unet": (14000, 256), "judge": (6000, 192)})
ALIKE = ("mushroom", "table", "tree", "lamp", "umbrella", "hamburger", "apple", "gift")  # from every side


def drawn_views(views: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns `count` random ones of the views."""
    return views[torch.randint(len(views), (count,), generator=generator)]


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
        drawn = data.draw(drawn_views(views, plan.batch, generator), generator, seen=False)
        fast = on_device(generator)
        images = data.paint(drawn, fast)
        if step < 0.85 * plan.steps:
            x, y = torch.randint(4, 21, (2,), generator=generator).tolist()
            images = images[..., y:y + 40, x:x + 40]
        few = plan.batch // 3  # which a render of an early step resembles
        images = 2 * torch.cat([degraded(images[:few], fast), images[few:]]) - 1
        with half_precision():
            posterior = model.encode(images).latent_dist
            jitter = torch.randn(posterior.mean.shape, generator=fast, device=DEVICE)
            rebuilt = model.decode(posterior.mean + posterior.std * jitter).sample.float()
        return error_of(rebuilt, images) + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    save_vae(train(model, plan, loss, out / "vae.pt"), data, out)


@torch.no_grad()
def save_vae(model: nn.Module, data: Corpus, out: Path) -> None:
    """Writes out/models/vae with the factor that gives the test latents unit deviation, and a sheet of pairs."""
    generator, index = torch.Generator().manual_seed(1), data.split(test=True)[::3]
    images = data.paint(data.draw(index, generator, seen=False), on_device(generator))
    mean = torch.cat([model.encode(2 * some - 1).latent_dist.mean for some in images.split(32)])
    rebuilt = torch.cat([model.decode(some).sample for some in mean.split(32)]) / 2 + 0.5
    model.register_to_config(scaling_factor=round(1 / float(mean.std()), 4))
    model.save_pretrained(out / "models" / "vae")
    error = rebuilt.clamp(0, 1) - images
    print(f"vae: L1 {float(error.abs().mean()):.4f}, PSNR {-10 * math.log10(error.square().mean()):.1f} dB, "
          f"scaling factor {model.config.scaling_factor}", flush=True)
    sheet(torch.stack([images, rebuilt], dim=1)[:96].flatten(0, 1).cpu(), 16, out / "vae.png")


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
            sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(96, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1, norm_num_groups=16,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=128, attention_head_dim=(3, 4),
            resnet_time_scale_shift="scale_shift", addition_embed_type="text", addition_embed_type_num_heads=4)
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU a fifth faster than the fused kernel at this size

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, t, self.text(ids).last_hidden_state).sample


def new_scheduler() -> DDPMScheduler:
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)


@torch.no_grad()
def latents(out: Path) -> None:
    """Writes out/latents/K.pt: scaled posterior means and deviations [N, 2, 4, 16, 16] in seen looks, the looks and the
    tables' looks [N]."""
    from diffusers import AutoencoderKL

    (out / "latents").mkdir(exist_ok=True)
    data, model = Corpus.load(out), AutoencoderKL.from_pretrained(out / "models" / "vae").eval().to(DEVICE)
    for shard in range(SHARDS):
        path, generator, moments = out / "latents" / f"{shard}.pt", torch.Generator().manual_seed(100 + shard), []
        if path.exists():
            continue
        drawn, fast = data.draw(torch.arange(len(data.name)), generator, seen=True), on_device(generator)
        for some in torch.arange(len(data.name)).split(64):
            images = 2 * data.paint(drawn[some], fast) - 1
            with half_precision():
                posterior = model.encode(images).latent_dist
            both = torch.stack([posterior.mean, posterior.std], dim=1)
            moments.append((both * model.config.scaling_factor).half().cpu())
        torch.save({"moments": torch.cat(moments), "look": drawn.look, "table": drawn.table}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        print(f"latents: shard {shard}", flush=True)


def load_denoiser(out: Path) -> nn.Module:
    """Returns the moving average of the last checkpoint."""
    model = Denoiser(text_sizes(out / "models" / "tokenizer"))
    model.load_state_dict(averaged(out / "unet.pt"))
    return model


def unet(out: Path) -> None:
    """Trains the denoiser on the cached latents; objects with sides come more often than those alike from every side.

    Captions: 84 % with all the view's words, 8 % with the coarse ones, 8 % with none; 10 % of all are replaced by "".
    """
    data, plan, scheduler = Corpus.load(out), PLANS["unet"], new_scheduler()
    write_tokenizer(out / "models" / "tokenizer")
    tokens = load_tokenizer(out / "models" / "tokenizer")
    shards = [torch.load(path) for path in sorted((out / "latents").glob("*.pt"))]
    moments = [shard["moments"].to(DEVICE) for shard in shards]
    phrases, views = data.phrases(), data.split(test=False)
    share = torch.tensor([1.0 if name in ALIKE else 1.5 for name in NAMES])[data.name[views]]
    share = torch.where(data.on_table[views], 0.5 * share, share)

    def words(view: Tensor, generator: torch.Generator) -> list[str]:
        kinds = torch.rand(len(view), generator=generator).tolist()
        return [fine if kind < 0.84 else coarse if kind < 0.92 else ""
                for kind, (fine, coarse) in zip(kinds, (phrases[i] for i in view.tolist()))]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        number, chosen = step % len(shards), torch.multinomial(share, plan.batch, replacement=True, generator=generator)
        view = views[chosen]
        drawn = Drawn(view, shards[number]["look"][view], shards[number]["table"][view])
        drop = (torch.rand(plan.batch, generator=generator) < 0.1).tolist()
        texts = ["" if lost else text for lost, text in zip(drop, data.captions(drawn, words(view, generator)))]
        ids, fast = tokens(texts).to(DEVICE), on_device(generator)
        mean, std = moments[number][view.to(DEVICE)].float().unbind(dim=1)
        noise, jitter = torch.randn(2, *mean.shape, generator=fast, device=DEVICE)
        t = torch.randint(1000, (plan.batch,), generator=fast, device=DEVICE)
        noisy = scheduler.add_noise(mean + std * jitter, noise, t)
        with half_precision():
            found = model(noisy, t, ids)
        return weighted(found.float() - noise, t, scheduler, 0.2)

    model = seeded(plan.seed, lambda: Denoiser(text_sizes(out / "models" / "tokenizer")))
    train(model, plan, loss, out / "unet.pt")


# ---- the judge ----

def judge(out: Path) -> None:
    """Trains the CLIP judge: each image against the batch's captions and as many others, of looks held out too."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    data, plan, folder = Corpus.load(out), PLANS["judge"], out / "models" / "judge"
    write_tokenizer(folder)
    tokens = load_tokenizer(folder)
    common = {"hidden_act": "gelu", "num_attention_heads": 4, "projection_dim": 128}
    text = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, **common, **text_sizes(folder)}
    vision = {"hidden_size": 176, "intermediate_size": 704, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8,
              **common}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    model, views, phrases = seeded(plan.seed, lambda: CLIPModel(config)), data.split(test=False), data.phrases()
    model.set_attn_implementation("eager")  # on a CPU twice as fast as the fused kernel at this size

    def logits(clip: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
        return clip(input_ids=texts, pixel_values=2 * images - 1).logits_per_image.float()

    def others(drawn: Drawn, generator: torch.Generator) -> Drawn:
        """Returns for every view one in another look, or another view in its look."""
        swap = torch.rand(len(drawn.view), generator=generator) < 0.5
        fresh = data.draw(drawn.view, generator, seen=False)
        view = torch.where(swap, drawn.view, drawn_views(views, len(drawn.view), generator))
        return Drawn(view, torch.where(swap, fresh.look, drawn.look),
                     torch.where(data.on_table[view], torch.where(fresh.table >= 0, fresh.table, 0), -1))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        drawn, fast = data.draw(drawn_views(views, plan.batch, generator), generator, seen=False), on_device(generator)
        images = augmented(data.paint(drawn, fast, solid=0.75), fast)
        wrong = others(drawn, generator)
        with_view = (torch.rand(plan.batch, generator=generator) < 0.5).tolist()
        told = [phrases[i][0] if shown else "" for i, shown in zip(drawn.view.tolist(), with_view)]
        texts = data.captions(drawn, told) + data.captions(wrong, told)
        plain = data.captions(drawn, [""] * plan.batch) + data.captions(wrong, [""] * plan.batch)
        number = {text: i for i, text in enumerate(plain)}
        kind = torch.tensor([number[text] for text in plain])
        same = (kind[:plan.batch, None] == kind).fill_diagonal_(False)
        with half_precision():
            scores = logits(model, images, tokens(texts).to(DEVICE))
        return F.cross_entropy(scores.masked_fill(same.to(DEVICE), -1e4), torch.arange(plan.batch, device=DEVICE))

    finished = train(model, plan, loss, out / "judge.pt")
    generator, index = torch.Generator().manual_seed(1), data.split(test=True)
    drawn, fast = data.draw(index[~data.on_table[index]], generator, seen=False), on_device(generator)
    clean, truth = data.paint(drawn, fast), data.name[drawn.view] * len(LOOKS) + drawn.look
    texts = tokens([caption(*pair) for pair in PAIRS]).to(DEVICE)
    for name, images in (("clean", clean), ("augmented", augmented(clean, fast))):
        with torch.no_grad():
            found = torch.cat([logits(finished, some, texts).argmax(dim=-1) for some in images.split(64)]).cpu()
        print(f"judge: top-1 of {len(PAIRS)} pairs on {len(truth)} {name} test images: "
              f"{float((found == truth).float().mean()):.4f}", flush=True)
    finished.cpu().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3,
                       image_std=[0.5] * 3).save_pretrained(folder)


# ---- the finished folder ----

def export(out: Path, weights: Path = WEIGHTS) -> None:
    """Writes the prior as of the last checkpoint (its moving average), the judge, and their words."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    tokenizer = out / "models" / "tokenizer"
    model = load_denoiser(out)
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
    vocabulary = {"shapes": NAMES, "scenes": SCENES, "colours": LOOKS, "held_out": {name: held_out(name) for name in NAMES},
                  "views": [phrase for phrase in PHRASES if phrase]}
    (weights / "vocabulary.json").write_text(json.dumps(vocabulary, indent=1) + "\n")
    size = sum(file.stat().st_size for file in (weights / "prior").rglob("*") if file.is_file())
    print(f"export: prior {size / 1e6:.2f} MB", flush=True)


STAGES: dict[str, Callable[[Path], None]] = {
    "corpus": write_corpus, "vae": vae, "latents": latents, "unet": unet, "judge": judge, "export": export,
    "sample": partial(sample, weights=WEIGHTS), "measure": partial(measure, weights=WEIGHTS)}


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
