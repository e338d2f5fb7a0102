"""Trains two small models that know cameras, from the built-in text prior: one is shown a picture and asked for the
object from elsewhere (Zero-1-to-3, arXiv 2303.11328), one makes four views around an object at once (MVDream, arXiv
2308.16512).

Stages: posed -> latents -> pose, four -> export; `tools.measure_posed` judges them. Seeded, on one thread, resumable.
Shapes: B images of 64 x 64 pixels, latents [B, 4, 16, 16].
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mpiprop.priors.mvdream import CAMERA, Joined, camera_labels
from mpiprop.priors.zero123 import pose
from mpiprop.views.cameras import orbit
from tools.corpus import COLOURS, SHAPES, caption
from tools.dataset import PAIRS, load_tokenizer
from tools.posed import FOVY, PAINTINGS, Posed, write_latents, write_posed
from tools.train_prior import WEIGHTS, new_scheduler
from tools.training import Plan, seeded, train

EMBEDDED, CONTEXT = 96, 128  # width of the judge's image embeddings; of the UNet's context
PLANS = {
    "pose": Plan(steps=3000, batch=16, rate=8e-4, seed=11, average=0.998),
    "four": Plan(steps=3500, batch=16, rate=8e-4, seed=12, average=0.998),
}


def text_unet(**changes: object) -> nn.Module:
    """Returns the text prior's UNet with a changed configuration; parameters that it lacks begin at zero."""
    from diffusers import UNet2DConditionModel

    old = UNet2DConditionModel.from_pretrained(WEIGHTS / "prior" / "unet")
    new, known = UNet2DConditionModel.from_config(dict(old.config) | changes), old.state_dict()
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if name not in known:
                parameter.mul_("linear_2" not in name)
            elif parameter.shape == known[name].shape:
                parameter.copy_(known[name])
            else:
                parameter.zero_()[:, :known[name].shape[1]] = known[name]
    return new


class PoseDenoiser(nn.Module):
    """The image encoder and the UNet, trained together; `compass` reads the picture's own camera off its embedding, so that
    there is something for a pose to be relative to: (sin azimuth, cos azimuth, elevation)."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.attention_processor import AttnProcessor

        self.eye, self.compass = eye_of().train(), nn.Linear(EMBEDDED, 3)
        self.eye.set_attn_implementation("eager")  # as for the judge
        self.unet, self.projection = text_unet(in_channels=8), nn.Linear(EMBEDDED + 4, CONTEXT)
        self.unet.set_attn_processor(AttnProcessor())
        with torch.no_grad():
            self.projection.weight[:, EMBEDDED:] *= 4  # four numbers beside ninety-six

    def forward(self, noisy: Tensor, t: Tensor, image: Tensor, picture: Tensor, pose_: Tensor,
                shown: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the noise in latents [B, 4, 16, 16] at t [B] and the camera read [B, 3], given the picture as an image
        [B, 3, 64, 64] in [0, 1] and as latents, the pose [B, 4], and whether both are shown [B]."""
        shown, embedding = shown.to(noisy)[:, None], self.eye(pixel_values=2 * image - 1).image_embeds
        token = (self.projection(torch.cat([embedding, pose_], dim=1)) * shown)[:, None]
        noise = self.unet(torch.cat([noisy, picture * shown[..., None, None]], dim=1), t, token).sample
        return noise.float(), self.compass(embedding).float()


def four_unet() -> nn.Module:
    """Returns the text prior's UNet with a camera embedding, which at first adds nothing."""
    return text_unet(class_embed_type="projection", projection_class_embeddings_input_dim=CAMERA)


def weighted(error: Tensor, t: Tensor, scheduler: object) -> Tensor:
    """Returns the mean of the errors of the noise [B, 4, 16, 16], weighted min(SNR, 5) / SNR (arXiv 2303.09556)."""
    bar = scheduler.alphas_cumprod[t]
    snr = bar / (1 - bar)
    return (error.square().mean(dim=(1, 2, 3)) * (snr.clamp_max(5) / snr)).mean()


def draw_t(count: int, generator: torch.Generator) -> Tensor:
    """Returns timesteps [count], late ones more often: what early ones show is known from the text prior."""
    return (1000 * torch.rand(count, generator=generator) ** (2 / 3)).long()


def train_pose(out: Path) -> None:
    """Trains on pairs of views of one object in one colour on white; 12 % of them without the picture and the pose."""
    data, latents, plan, scheduler = Posed.load(out), torch.load(out / "posed" / "latents.pt"), PLANS["pose"], new_scheduler()
    scale = vae_of().config.scaling_factor
    known = data.split(test=False)
    elevation = torch.rad2deg(data.cameras[:, 1])
    source = known[(elevation[known] > -5) & (elevation[known] < 40)]
    colour = latents["white_colour"]  # [P, N]
    places = {pair: [torch.nonzero((data.shape[some] == pair[0]) & (colour[:, some] == pair[1]))
                     for some in (source, known)]
              for pair in ((s, c) for s in range(len(SHAPES)) for c in range(len(COLOURS)))}
    places = {pair: found for pair, found in places.items() if all(len(rows) for rows in found)}
    pairs = list(places)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        def draw(rows: Tensor) -> Tensor:
            return rows[torch.randint(len(rows), (1,), generator=generator)][0]

        chosen = [pairs[i] for i in torch.randint(len(pairs), (plan.batch,), generator=generator)]
        (p, seen), (q, asked) = (torch.stack([draw(places[pair][side]) for pair in chosen]).T for side in (0, 1))
        seen, asked = source[seen], known[asked]
        mean, std = latents["white"][q, asked].float().unbind(dim=1)
        noise, jitter = torch.randn(2, *mean.shape, generator=generator)
        t = draw_t(plan.batch, generator)
        shown = torch.rand(plan.batch, generator=generator) >= 0.12
        there, here = data.cameras[asked], data.cameras[seen]
        image = data.paint(seen, colour[p, seen])
        noisy = scheduler.add_noise(scale * (mean + std * jitter), noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            found, read = model(noisy, t, image, latents["white"][p, seen, 0].float(), pose(*there.T, *here.T), shown)
        own = torch.stack([here[:, 0].sin(), here[:, 0].cos(), here[:, 1]], dim=1)
        return weighted(found - noise, t, scheduler) + 0.02 * (read - own).square().mean()

    model = seeded(plan.seed, PoseDenoiser)
    train(model, plan, loss, out / "pose.pt")


def train_four(out: Path) -> None:
    """Trains on groups of four views of one object in one colour before one background, at one t; 10 % without a caption."""
    from transformers import CLIPTextModel

    data, latents, plan, scheduler = Posed.load(out), torch.load(out / "posed" / "latents.pt"), PLANS["four"], new_scheduler()
    scale, count = vae_of().config.scaling_factor, plan.batch // 4
    tokens = load_tokenizer(WEIGHTS / "prior" / "tokenizer")
    with torch.no_grad():
        encoder = CLIPTextModel.from_pretrained(WEIGHTS / "prior" / "text_encoder")
        table = encoder(tokens([caption(*pair) for pair in PAIRS] + [""])).last_hidden_state
    first = data.split(test=False)[::4]
    cameras = camera_labels(orbit(*data.cameras.T, FOVY, (64, 64)).c2w)
    colour = latents["mixed_colour"]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        group = first[torch.randint(len(first), (count,), generator=generator)]
        index = (group[:, None] + torch.arange(4)).flatten()
        painting = torch.randint(PAINTINGS, (count,), generator=generator).repeat_interleave(4)
        mean, std = latents["mixed"][painting, index].float().unbind(dim=1)
        noise, jitter = torch.randn(2, *mean.shape, generator=generator)
        t = draw_t(count, generator).repeat_interleave(4)
        drop = (torch.rand(count, generator=generator) < 0.1).repeat_interleave(4)
        row = torch.where(drop, len(PAIRS), data.shape[index] * len(COLOURS) + colour[painting, index])
        noisy = scheduler.add_noise(scale * (mean + std * jitter), noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            out_ = model(noisy, t, table[row], class_labels=cameras[index]).sample.float()
        return weighted(out_ - noise, t, scheduler)

    model = seeded(plan.seed, four_unet)
    model.set_attn_processor(Joined())
    train(model, plan, loss, out / "four.pt")


def vae_of() -> nn.Module:
    """Returns the text prior's autoencoder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(WEIGHTS / "prior" / "vae").eval()


def eye_of() -> nn.Module:
    """Returns the judge's vision tower."""
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection.from_pretrained(WEIGHTS / "judge").eval()


def averaged(out: Path, stage: str) -> dict[str, Tensor]:
    """Returns the moving average that a stage's last checkpoint holds."""
    saved = torch.load(out / f"{stage}.pt")["average"]
    return {key.removeprefix("module."): value for key, value in saved.items() if key.startswith("module.")}


def export(out: Path) -> None:
    """Writes the models as of their last checkpoints, in halves, without what they share with the text prior."""
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor

    if (out / "pose.pt").exists():
        folder, model = WEIGHTS / "zero123", PoseDenoiser()
        model.load_state_dict(averaged(out, "pose"))
        model.unet.half().save_pretrained(folder / "unet")
        model.eye.half().save_pretrained(folder / "image_encoder")
        CLIPImageProcessor.from_pretrained(WEIGHTS / "judge").save_pretrained(folder / "feature_extractor")
        (folder / "cc_projection").mkdir(exist_ok=True)
        save_file({f"projection.{key}": value.half() for key, value in model.projection.state_dict().items()},
                  folder / "cc_projection" / "diffusion_pytorch_model.safetensors")
        config = {"_class_name": "CCProjection", "in_channel": EMBEDDED + 4, "out_channel": CONTEXT}
        (folder / "cc_projection" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        told = folder / "image_encoder" / "config.json"  # transformers computes in the type named there
        told.write_text(told.read_text().replace("float16", "float32"))
    if (out / "four.pt").exists():
        model = four_unet()
        model.load_state_dict(averaged(out, "four"))
        model.half().save_pretrained(WEIGHTS / "mvdream" / "unet")
    for folder in (WEIGHTS / "zero123", WEIGHTS / "mvdream"):
        new_scheduler().save_pretrained(folder / "scheduler")
        for config in folder.glob("unet/config.json"):
            told = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
            config.write_text(json.dumps(told, indent=2) + "\n")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"export: {folder.name} {size / 1e6:.2f} MB", flush=True)


STAGES: dict[str, Callable[[Path], None]] = {
    "posed": write_posed, "latents": lambda out: write_latents(out, vae_of()), "pose": train_pose,
    "four": train_four, "export": export}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the views, the checkpoints and the sheets")
    args = parser.parse_args()
    STAGES[args.stage](args.out)


if __name__ == "__main__":
    main()
