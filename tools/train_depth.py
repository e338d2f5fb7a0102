"""Trains the built-in depth network (a small DPT, arXiv 2103.13413) on views of the corpus whose depth is known.

It reads images as renders and noisy decoded latents are, and returns relative inverse depth: 0 for the background, 0.2
to 1 from the farthest to the nearest point of what is seen. Stages: views -> train -> export; seeded, resumable.
Shapes: B images [B, 3, 64, 64] in [0, 1]; depths are [B, 64, 64].
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mpiprop.corpus.objects import NAMES, SCENES
from tools.dataset import (PALETTE, SIZE, degraded, draw_backgrounds, draw_inside, draw_looks, draw_shots, traced,
                           tracer_of)
from tools.tracer import Layers
from tools.train_prior import WEIGHTS
from tools.training import DEVICE, Plan, averaged, half_precision, on_device, on_this_device, seeded, sheet, train

ALONE, ON_TABLE = 240, 40  # views of each object; the last KEPT of each kind are kept for tests
KEPT = 8
PLAN = on_this_device({"depth": Plan(steps=5000, batch=48, rate=8e-4, seed=20, average=0.998)},
                      gpu={"depth": (6000, 128)})["depth"]


def relative(depth: Tensor) -> Tensor:
    """Returns relative inverse depth [B, H, W] in [0, 1] of depths that are infinite where nothing is."""
    inverse, seen = 1 / depth, depth.isfinite()
    low = inverse.masked_fill(~seen, torch.inf).amin(dim=(1, 2), keepdim=True)
    high = inverse.amax(dim=(1, 2), keepdim=True)
    return torch.where(seen, 0.2 + 0.8 * (inverse - low) / (high - low).clamp_min(1e-6), 0)


def write_views(out: Path) -> None:
    """Writes out/depth/NAME.pt: layers as bytes [N, H, W, layers], relative inverse depths [N, H, W]."""
    (out / "depth").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        path, generator = out / "depth" / f"{name}.pt", torch.Generator().manual_seed(400 + number)
        if path.exists():
            continue
        if name in SCENES:
            kinds = [(False, draw_inside(ALONE + ON_TABLE, generator))]
        else:
            kinds = [(False, draw_shots(ALONE, generator)), (True, draw_shots(ON_TABLE, generator))]
        layers, depths = [], []
        for on_table, shots in kinds:
            tracer = tracer_of(name, on_table)
            layers.append(traced(tracer, shots))
            depths += [relative(tracer.depth(shots[i:i + 16].to(DEVICE), SIZE)).half().cpu()
                       for i in range(0, len(shots.azimuth), 16)]
        torch.save({"layers": torch.cat(layers), "depth": torch.cat(depths)}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        print(f"depth: {name}", flush=True)


class Views:
    """All views: layers [N, H, W, layers] bytes, depths [N, H, W], names [N]."""

    def __init__(self, out: Path) -> None:
        files = [torch.load(out / "depth" / f"{name}.pt") for name in NAMES]
        self.layers, self.depth = (torch.cat([file[key] for file in files]) for key in ("layers", "depth"))
        self.name = torch.arange(len(NAMES)).repeat_interleave(ALONE + ON_TABLE)
        number = torch.arange(len(self.name)) % (ALONE + ON_TABLE)
        self.test = ((number >= ALONE - KEPT) & (number < ALONE)) | (number >= ALONE + ON_TABLE - KEPT)

    def paint(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns images in random looks over random backgrounds, and their depths."""
        looks, tables = (PALETTE[draw_looks(self.name[index], generator, seen=False)].to(DEVICE) for _ in range(2))
        behind = draw_backgrounds(len(index), SIZE, on_device(generator))
        images = Layers(self.layers[index].to(DEVICE).float() / 255).over(looks, behind, tables)
        return images.movedim(-1, 1), self.depth[index].to(DEVICE).float()


def new_network() -> nn.Module:
    from transformers import DPTConfig, DPTForDepthEstimation

    network = DPTForDepthEstimation(DPTConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE,
        patch_size=8, backbone_out_indices=[0, 1, 2, 3], reassemble_factors=[2, 1, 0.5, 0.25],
        neck_hidden_sizes=[32, 48, 64, 64], fusion_hidden_size=48, readout_type="ignore", use_auxiliary_head=False,
        use_batch_norm_in_fusion_residual=False))
    for part in (*network.neck.modules(), *network.head.modules()):
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.reset_parameters()  # the library's weights are so small that next to nothing of a picture arrives
    nn.init.constant_(network.head.head[-2].bias, 0.3)  # the mean depth; below 0 the last layer has no gradient
    return network


def error_of(found: Tensor, true: Tensor) -> Tensor:
    """Returns the L1 error of depths plus that of the differences between neighbouring pixels."""
    error = found - true
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def train_depth(out: Path) -> None:
    """Trains on images as they are, degraded, and with noise of any strength; prints errors on views kept for tests."""
    data = Views(out)
    known, test = torch.nonzero(~data.test)[:, 0], torch.nonzero(data.test)[:, 0]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = known[torch.randint(len(known), (PLAN.batch,), generator=generator)]
        images, depth = data.paint(index, generator)
        fast = on_device(generator)
        strength = torch.rand(PLAN.batch, 1, 1, 1, generator=fast, device=DEVICE).square()
        noisy = degraded(images, fast) + strength * torch.randn(images.shape, generator=fast, device=DEVICE)
        with half_precision():
            found = model(2 * noisy - 1).predicted_depth
        return error_of(found.float(), depth)

    model = seeded(PLAN.seed, new_network)
    model.head.head[-1] = nn.LeakyReLU(0.1)  # as it is, the network settles on 0 everywhere, where it has no gradient
    finished = train(model, PLAN, loss, out / "depth.pt")
    images, depth = data.paint(test, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = torch.cat([finished(2 * some - 1).predicted_depth for some in images.split(64)])
    inside = depth > 0
    inner = [torch.corrcoef(torch.stack([a[m], b[m]]))[0, 1] for a, b, m in zip(found, depth, inside)]
    error, alike = (found - depth).abs(), float(torch.stack(inner).mean())
    print(f"depth: L1 {float(error.mean()):.4f}, inside the outline {float(error[inside].mean()):.4f}, "
          f"correlation there {alike:.3f}", flush=True)
    shown = torch.stack([images, depth[:, None].expand_as(images), found[:, None].expand_as(images)], dim=1)
    sheet(shown[::7][:60].flatten(0, 1).cpu(), 15, out / "depth.png")


def export(out: Path) -> None:
    """Writes the network as of its last checkpoint, in halves."""
    from transformers import DPTImageProcessor

    model, folder = new_network(), WEIGHTS / "depth"
    model.load_state_dict(averaged(out / "depth.pt"))
    model.half().save_pretrained(folder)
    processor = DPTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)
    config = folder / "config.json"  # transformers computes in the type named there
    config.write_text(config.read_text().replace("float16", "float32"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"export: depth {size / 1e6:.2f} MB", flush=True)


STAGES: dict[str, Callable[[Path], None]] = {"views": write_views, "train": train_depth, "export": export}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the views, the checkpoint and the sheet")
    args = parser.parse_args()
    STAGES[args.stage](args.out)


if __name__ == "__main__":
    main()
