"""Trains two small models that know cameras, from the built-in text prior: one is shown a picture and asked for the
object from elsewhere (Zero-1-to-3, arXiv 2303.11328), one makes four views around an object at once (MVDream, arXiv
2308.16512).

Stages: posed -> latents -> eye -> pose; four; export; `tools.measure_posed` judges them. Seeded, on one thread, resumable.
Shapes: B images of 64 x 64 pixels, latents [B, 4, 16, 16].
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpiprop.priors.mvdream import CAMERA, Joined, camera_labels
from mpiprop.conditioning.picture import pose
from mpiprop.views.cameras import orbit
from mpiprop.corpus.captions import caption, view_phrase
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import SHAPES
from tools.dataset import PAIRS, draw_looks, load_tokenizer
from tools.posed import FOVY, PAINTINGS, Posed, write_latents, write_posed
from tools.train_prior import WEIGHTS, new_scheduler
from tools.training import DEVICE, Plan, averaged, half_precision, on_this_device, seeded, train, weighted

EMBEDDED, CONTEXT = 128, 128  # width of the judge's image embeddings; of the UNet's context
PLANS = on_this_device({
    "eye": Plan(steps=2400, batch=64, rate=5e-4, seed=10, average=0.99),
    "pose": Plan(steps=6500, batch=32, rate=5e-4, seed=11, average=0.998),
    "four": Plan(steps=4000, batch=32, rate=8e-4, seed=12, average=0.998),
}, gpu={"eye": (2400, 128), "pose": (9000, 64), "four": (6000, 128)})


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


class Eye(nn.Module):
    """The judge's vision tower, and linear heads that read off its embedding what a pose is relative to, the picture's own
    camera (sin azimuth, cos azimuth, elevation), and what is seen (logits of the shapes, of the looks)."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.heads = eye_of().train(), nn.Linear(EMBEDDED, 3 + len(SHAPES) + len(LOOKS))
        self.tower.set_attn_implementation("eager")  # as for the judge

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the camera [B, 3] and the two logits of images [B, 3, 64, 64] in [0, 1]."""
        return self.heads(self.tower(pixel_values=2 * images - 1).image_embeds).float().split(
            [3, len(SHAPES), len(LOOKS)], dim=1)


class PoseDenoiser(nn.Module):
    """The UNet, and the layer that makes a token of an embedding and a pose."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.attention_processor import AttnProcessor

        self.unet, self.projection = text_unet(in_channels=8), nn.Linear(EMBEDDED + 4, CONTEXT)
        self.unet.set_attn_processor(AttnProcessor())

    def forward(self, noisy: Tensor, t: Tensor, embedding: Tensor, picture: Tensor, pose_: Tensor, shown: Tensor) -> Tensor:
        """Returns the noise in latents [B, 4, 16, 16] at t [B], given the picture's embedding [B, E] and latents, the pose
        [B, 4], and whether they are shown [B]."""
        shown = shown.to(noisy)[:, None]
        token = (self.projection(torch.cat([embedding, pose_], dim=1)) * shown)[:, None]
        return self.unet(torch.cat([noisy, picture * shown[..., None, None]], dim=1), t, token).sample.float()


def four_unet() -> nn.Module:
    """Returns the text prior's UNet with a camera embedding, which at first adds nothing."""
    return text_unet(class_embed_type="projection", projection_class_embeddings_input_dim=CAMERA)


def train_eye(out: Path) -> None:
    """Trains the eye to tell the camera beside what is seen, on white; prints how far it is off on views kept for tests."""
    data, plan = Posed.load(out), PLANS["eye"]
    known = data.split(test=False)

    def told(model: nn.Module, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the squared errors of the camera [B, 3], and the cross entropies of shape and look."""
        look, (azimuth, elevation, _) = draw_looks(data.shape[index], generator, seen=True), data.cameras[index].T
        with half_precision():
            camera, shapes, looks = model(data.paint(index, look))
        own = torch.stack([azimuth.sin(), azimuth.cos(), elevation], dim=1).to(DEVICE)
        return ((camera - own).square(), F.cross_entropy(shapes, data.shape[index].to(DEVICE)),
                F.cross_entropy(looks, look.to(DEVICE)))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        camera, shape, look = told(model, known[torch.randint(len(known), (plan.batch,), generator=generator)], generator)
        return camera.mean() + 0.1 * (shape + look)

    model = seeded(plan.seed, Eye)
    finished, test = train(model, plan, loss, out / "eye.pt"), data.split(test=True)
    with torch.no_grad():
        camera = told(finished, test, torch.Generator().manual_seed(1))[0].sqrt().cpu()
    for number, shape in enumerate(SHAPES):
        off = ", ".join(f"{value:.2f}" for value in camera[data.shape[test] == number].mean(0).tolist())
        print(f"eye: {shape}: sin and cos of azimuth, elevation off by {off}", flush=True)


@torch.no_grad()
def embedded(data: Posed, look: Tensor, tower: nn.Module) -> Tensor:
    """Returns the tower's embeddings [P, N, E] of all views in the looks [P, N], on white."""
    tower.to(DEVICE)
    return torch.stack([torch.cat([tower(pixel_values=2 * data.paint(some, looks[some]) - 1).image_embeds.cpu()
                                   for some in torch.arange(len(looks)).split(64)]) for looks in look])


@torch.no_grad()
def words(captions: list[str]) -> Tensor:
    """Returns the text prior's hidden states [N, L, C] of captions."""
    from transformers import CLIPTextModel

    tokens = load_tokenizer(WEIGHTS / "prior" / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(WEIGHTS / "prior" / "text_encoder")
    return torch.cat([encoder(tokens(captions[i:i + 256])).last_hidden_state for i in range(0, len(captions), 256)])


@torch.no_grad()
def put_into_words(projection: nn.Linear, told: Tensor, captions: list[str]) -> None:
    """Sets the layer to what makes of `told` [N, E + 4] most nearly the mean hidden state of each caption, so that the UNet
    begins with what it knows of words. What each number of the pose adds is brought to norm 3: words make little of left and
    right, and what is small at first is not learned."""
    known = {text: number for number, text in enumerate(dict.fromkeys(captions))}
    state = words(list(known)).mean(1)[[known[text] for text in captions]]
    told = torch.cat([told, torch.ones(len(told), 1)], dim=1)
    ridge = 1e-3 * len(told) * torch.eye(told.shape[1])
    found = torch.linalg.solve(told.T @ told + ridge, told.T @ state)
    projection.weight.copy_(found[:-1].T)
    projection.weight[:, -4:] *= 3 / projection.weight[:, -4:].norm(dim=0)
    projection.bias.copy_(found[-1])


class Pairs:
    """Two views of one object in one look on white: one to be shown, the other asked for."""

    def __init__(self, data: Posed, look: Tensor) -> None:
        """Knows the looks [P, N] that each painting of a view has."""
        self.known = data.split(test=False)
        azimuth, elevation, _ = data.cameras[self.known].T
        self.shown = self.known[(elevation > math.radians(-5)) & (elevation < math.radians(40))]
        azimuth = data.cameras[self.shown, 0]
        self.turned = torch.atan2(azimuth.sin(), azimuth.cos()).abs()  # from the front
        found = [[torch.nonzero((data.shape[some] == s) & (look[:, some] == c)) for some in (self.shown, self.known)]
                 for s in range(len(SHAPES)) for c in range(len(LOOKS))]
        self.places = [both for both in found if all(len(rows) for rows in both)]  # of each object: [M, 2] painting and view

    def draw(self, count: int, reach: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns painting and view [count] to be shown, from at most `reach` (rad) beside the front, and to be asked for."""
        rows = []
        for i in torch.randint(len(self.places), (count,), generator=generator):
            shown, asked = self.places[i]
            some = shown[torch.randint(len(shown), (32,), generator=generator)]
            near = some[(self.turned[some[:, 1]] <= reach).int().argmax()]
            rows.append(torch.cat([near, asked[torch.randint(len(asked), (1,), generator=generator)][0]]))
        p, seen, q, other = torch.stack(rows).T
        return p, self.shown[seen], q, self.known[other]


def train_pose(out: Path) -> None:
    """Trains on pairs of views; 12 % of them without the picture and the pose.

    A pose adds to the camera that the picture shows, a sum of which neither part says anything alone. So pictures are taken
    from near the front at first, where the pose is all there is to know, and at last from all of the front half.
    """
    data, latents, plan, scheduler = Posed.load(out), torch.load(out / "posed" / "latents.pt"), PLANS["pose"], new_scheduler()
    scale, look, eye = vae_of().config.scaling_factor, latents["white_look"], Eye()
    eye.load_state_dict(averaged(out / "eye.pt"))
    pairs, embedding = Pairs(data, look), embedded(data, look, eye.tower.eval())

    def told(seen: Tensor, asked: Tensor) -> Tensor:
        return pose(*data.cameras[asked].T, *data.cameras[seen].T)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        p, seen, q, asked = pairs.draw(plan.batch, math.radians(20 + 70 * step / plan.steps), generator)
        mean, std = latents["white"][q, asked].float().unbind(dim=1)
        noise, jitter = torch.randn(2, *mean.shape, generator=generator)
        t = torch.randint(1000, (plan.batch,), generator=generator)
        shown = torch.rand(plan.batch, generator=generator) >= 0.12
        noisy = scheduler.add_noise(scale * (mean + std * jitter), noise, t)
        with half_precision():
            inputs = noisy, t, embedding[p, seen], latents["white"][p, seen, 0].float(), told(seen, asked), shown
            found = model(*(value.to(DEVICE) for value in inputs))
        return weighted(found - noise.to(DEVICE), t.to(DEVICE), scheduler, 1.0)

    model = seeded(plan.seed, PoseDenoiser)
    p, seen, _, asked = pairs.draw(8000, math.radians(20), torch.Generator().manual_seed(plan.seed))
    objects = (data.shape[seen] * len(LOOKS) + look[p, seen]).tolist()
    put_into_words(model.projection, torch.cat([embedding[p, seen], told(seen, asked)], dim=1), [
        caption(*PAIRS[pair], view_phrase(azimuth, elevation))
        for pair, (azimuth, elevation, _) in zip(objects, data.cameras[asked].tolist())])
    train(model, plan, loss, out / "pose.pt")


def train_four(out: Path) -> None:
    """Trains on groups of four views of one object in one look before one background, at one t; 10 % without a caption."""
    data, latents, plan, scheduler = Posed.load(out), torch.load(out / "posed" / "latents.pt"), PLANS["four"], new_scheduler()
    scale, count = vae_of().config.scaling_factor, plan.batch // 4
    table = words([*(caption(*pair) for pair in PAIRS), ""])
    first = data.split(test=False)[::4]
    cameras = camera_labels(orbit(*data.cameras.T, FOVY, (64, 64)).c2w)
    look = latents["mixed_look"]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        group = first[torch.randint(len(first), (count,), generator=generator)]
        index = (group[:, None] + torch.arange(4)).flatten()
        painting = torch.randint(PAINTINGS, (count,), generator=generator).repeat_interleave(4)
        mean, std = latents["mixed"][painting, index].float().unbind(dim=1)
        noise, jitter = torch.randn(2, *mean.shape, generator=generator)
        t = torch.randint(1000, (count,), generator=generator).repeat_interleave(4)
        drop = (torch.rand(count, generator=generator) < 0.1).repeat_interleave(4)
        row = torch.where(drop, len(PAIRS), data.shape[index] * len(LOOKS) + look[painting, index])
        noisy = scheduler.add_noise(scale * (mean + std * jitter), noise, t)
        with half_precision():
            inputs = noisy, t, table[row], cameras[index]
            noisy, t, state, camera = (value.to(DEVICE) for value in inputs)
            found = model(noisy, t, state, class_labels=camera).sample.float()
        return weighted(found - noise.to(DEVICE), t, scheduler, 0.3)

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


def export(out: Path) -> None:
    """Writes the models as of their last checkpoints, in halves, without what they share with the text prior."""
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor

    if (out / "pose.pt").exists():
        folder, model, eye = WEIGHTS / "zero123", PoseDenoiser(), Eye()
        model.load_state_dict(averaged(out / "pose.pt"))
        eye.load_state_dict(averaged(out / "eye.pt"))
        model.unet.half().save_pretrained(folder / "unet")
        eye.tower.half().save_pretrained(folder / "image_encoder")
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
        model.load_state_dict(averaged(out / "four.pt"))
        model.half().save_pretrained(WEIGHTS / "mvdream" / "unet")
    for folder in (WEIGHTS / "zero123", WEIGHTS / "mvdream"):
        new_scheduler().save_pretrained(folder / "scheduler")
        for config in folder.glob("unet/config.json"):
            told = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
            config.write_text(json.dumps(told, indent=2) + "\n")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"export: {folder.name} {size / 1e6:.2f} MB", flush=True)


STAGES: dict[str, Callable[[Path], None]] = {
    "posed": write_posed, "latents": lambda out: write_latents(out, vae_of()), "eye": train_eye,
    "pose": train_pose, "four": train_four, "export": export}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the views, the checkpoints and the sheets")
    args = parser.parse_args()
    STAGES[args.stage](args.out)


if __name__ == "__main__":
    main()
