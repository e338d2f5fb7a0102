"""What the built-in priors that know cameras can do, on groups of views kept for tests: pictures, and figures.

Shapes: B images [B, 3, 64, 64] in [0, 1], latents [B, 4, 16, 16]; poses are counted from the views' cameras.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.conditioning.base import Condition
from mpiprop.conditioning.camera import Cameras
from mpiprop.conditioning.picture import FromPicture
from mpiprop.priors.mvdream import MVDream
from mpiprop.priors.zero123 import Zero123
from mpiprop.views.cameras import orbit
from mpiprop.views.reference import Reference
from mpiprop.corpus.captions import caption
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import SHAPES, held_out
from tools.dataset import PAIRS, PALETTE, load_tokenizer
from tools.tracer import Layers
from tools.posed import FOVY, GROUPS, TESTED, Posed
from tools.train_prior import WEIGHTS
from tools.training import sheet

STEPS = 25  # of the sampler


@torch.no_grad()
def sampled(prior: Zero123 | MVDream, told: Condition, scale: float, seed: int) -> Tensor:
    """Returns images that DDIM makes of what the prior is told, under classifier-free guidance."""
    B = len(told.positive["text"])
    inputs = {name: torch.cat([told.positive[name], told.unconditional[name]]) for name in told.positive}
    x = torch.randn(B, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    bars = [*prior.alpha_bar[torch.linspace(999, 0, STEPS + 1).round().long()[:-1]].float(), torch.tensor(1.0)]
    for t, bar, next_ in zip(torch.linspace(999, 0, STEPS + 1).round().long(), bars, bars[1:]):
        cond, uncond = prior.eps(x.repeat(2, 1, 1, 1), t.expand(2 * B), **inputs).chunk(2)
        eps = uncond + scale * (cond - uncond)
        x = next_.sqrt() * (x - (1 - bar).sqrt() * eps) / bar.sqrt() + (1 - next_).sqrt() * eps
    return prior.decode(x)


@torch.no_grad()
def judged(images: Tensor, pairs: list[int]) -> float:
    """Returns the share of images that the judge takes for their pair of shape and look among all pairs."""
    from transformers import CLIPModel

    clip, tokens = CLIPModel.from_pretrained(WEIGHTS / "judge"), load_tokenizer(WEIGHTS / "judge")
    scores = clip(input_ids=tokens([caption(*pair) for pair in PAIRS]), pixel_values=2 * images - 1).logits_per_image
    return float((scores.argmax(dim=-1) == torch.tensor(pairs)).float().mean())


def tested(shape: int, number: int) -> int:
    """Returns the first view of a test group of a shape."""
    return 4 * (shape * GROUPS + GROUPS - TESTED + number % TESTED)


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio [n] (dB) of n pictures, in any order of dimensions."""
    return -10 * (made - true).square().flatten(1).mean(1).log10()


def reference(data: Posed, view: int, look: int) -> Reference:
    """Returns a view as a picture to start from."""
    layers = Layers(data.layers[view][None].float() / 255)
    premultiplied, alpha = layers.over(PALETTE[look][None], torch.zeros(3))[0], layers.alpha[0]
    rgb = torch.where(alpha > 0, premultiplied / alpha.clamp(min=1e-6), 0).clamp(0, 1)
    azimuth, elevation, distance = data.cameras[view].tolist()
    return Reference(azimuth, elevation, distance, FOVY, torch.cat([rgb, alpha], -1))


def front(data: Posed, first: int) -> int:
    """Returns the view of a group that is nearest to the front: the model was shown pictures from the front half."""
    return first + int(data.cameras[first:first + 4, 0].cos().argmax())


def low(data: Posed, shape: int) -> list[int]:
    """Returns the numbers of a shape's test groups by elevation, those in [-5, 40] deg alone."""
    elevation = [math.degrees(data.cameras[tested(shape, n), 1]) for n in range(TESTED)]
    return [n for n in range(TESTED) if -5 < elevation[n] < 40]


def measure_pose(data: Posed, out: Path, scale: float = 3.0) -> None:
    """Writes out/pose.png: per row (shape, held-out look) the picture, then four times a sample and the true view; prints
    PSNR, the judge's verdict, and which of eight azimuths explains a true view best."""
    prior, rows, made_all, true_all, pairs, hits, near, base = Zero123("cpu"), [], [], [], [], [], [], []
    for number, shape in enumerate(SHAPES):
        look = LOOKS.index(held_out(shape)[number % 3])
        groups = low(data, number)
        seen = front(data, tested(number, groups[0]))
        picture = FromPicture(reference(data, seen, look)).encode(prior, "", {})
        asked = tested(number, groups[1 % len(groups)]) + torch.arange(4)
        true = data.paint(asked, torch.full((4,), look)).cpu()
        made = sampled(prior, picture(orbit(*data.cameras[asked].T, FOVY, (64, 64))), scale, number)
        shown = data.paint(torch.tensor([seen]), torch.tensor([look])).cpu()
        rows.append(torch.cat([shown, torch.stack([made, true], 1).flatten(0, 1)]))
        made_all.append(made)
        true_all.append(true)
        base.append(psnr(shown.expand(4, -1, -1, -1), true))
        pairs += [PAIRS.index((shape, held_out(shape)[number % 3]))] * 4
        off = offsets(prior, picture, data.cameras[asked], true, number)
        hits.append(off == 0)
        near.append(off.abs() <= 1)
        print(f"pose: {shape}: {psnr(made, true).mean():.1f} dB, azimuth of eight right "
              f"{(off == 0).float().mean():.2f}, within 45 deg {(off.abs() <= 1).float().mean():.2f}", flush=True)
    made, true = torch.cat(made_all), torch.cat(true_all)
    print(f"pose: PSNR {psnr(made, true).mean():.1f} dB (the picture itself in its place: {torch.cat(base).mean():.1f}), "
          f"judge's top-1 {judged(made, pairs):.3f} (of the true views {judged(true, pairs):.3f}), azimuth of eight right "
          f"{torch.cat(hits).float().mean():.2f}, within 45 deg {torch.cat(near).float().mean():.2f}", flush=True)
    sheet(torch.cat(rows), 9, out / "pose.png")


@torch.no_grad()
def offsets(prior: Zero123, picture: object, cameras: Tensor, true: Tensor, seed: int) -> Tensor:
    """Returns how many times 45 deg the azimuth that explains each true view [B] best lies from its own."""
    x0, generator, error = prior.encode(true, Streams(0, 0)), torch.Generator().manual_seed(seed), []
    noises = [(t, torch.randn(x0[0].shape, generator=generator)) for t in (400, 600, 800)]
    for turn in range(8):
        azimuth = cameras[:, 0] + turn * math.pi / 4
        rows = picture(orbit(azimuth, cameras[:, 1], cameras[:, 2], FOVY, (64, 64)))
        total = torch.zeros(len(x0))
        for t, noise in noises:
            bar = prior.alpha_bar[t].float()
            x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * noise
            eps = prior.eps(x_t, torch.full((len(x0),), t), **rows.positive)
            total += (eps - noise).square().mean(dim=(1, 2, 3))
        error.append(total)
    return (torch.stack(error).argmin(0) + 4) % 8 - 4


def measure_four(data: Posed, out: Path, scale: float = 5.0) -> None:
    """Writes out/four.png: per row four views in a seen look, then in one held out; prints the judge's verdict and how
    far the views are from the true ones."""
    prior, images, pairs, error = MVDream("cpu"), [], [], []
    for number, shape in enumerate(SHAPES):
        seen = [look for look in LOOKS if look not in held_out(shape)]
        for look in (seen[5 * number % len(seen)], held_out(shape)[number % 3]):
            views = tested(number, low(data, number)[0]) + torch.arange(4)
            told = Cameras().encode(prior, caption(shape, look), {})(orbit(*data.cameras[views].T, FOVY, (64, 64)))
            made = sampled(prior, told, scale, number)
            true = data.paint(views, torch.full((4,), LOOKS.index(look))).cpu()
            images.append(made)
            pairs.append(PAIRS.index((shape, look)))
            turned = torch.stack([(made - true.roll(k, 0)).square().mean() for k in range(4)])
            error.append(int(turned.argmin()))
    sheet(torch.cat(images), 8, out / "four.png")
    for name, which in (("seen", slice(0, None, 2)), ("held out", slice(1, None, 2))):
        some, right = torch.cat(images[which]), [pair for pair in pairs[which] for _ in range(4)]
        turned = torch.tensor(error[which])
        print(f"four: {name}: judge's top-1 {judged(some, right):.3f}; groups nearest to the true ones as they stand, rather "
              f"than turned by 90, 180 or 270 deg: {(turned == 0).float().mean():.2f}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("pose", "four"))
    parser.add_argument("--out", type=Path, required=True, help="folder of tools.train_posed")
    args = parser.parse_args()
    (measure_pose if args.model == "pose" else measure_four)(Posed.load(args.out), args.out)


if __name__ == "__main__":
    main()
