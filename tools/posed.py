"""Views of the corpus' objects with known cameras, four around each at a time, and what small models read of them.

All have one field of view, so that two views of an object differ by their angles and distances alone.
Shapes: G groups of four orthogonal azimuths, N = 4 G views of all objects, adjacent by group; P paintings of each view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpiprop.corpus.objects import SHAPES
from tools.dataset import PALETTE, SIZE, draw_backgrounds, draw_looks, traced, tracer_of
from tools.tracer import Layers, Shots, toward
from tools.training import DEVICE, half_precision

GROUPS, TESTED, PAINTINGS = 120, 10, 2  # groups of each shape; the last of them are kept for tests
FOVY = math.radians(49.1)  # as the renderings that Zero-1-to-3 learned from


def draw_groups(count: int, generator: torch.Generator) -> Shots:
    """Returns cameras [4 count] that look at the origin from distance 1.5-2.1: each group has one elevation, in [-15,
    50] deg for 80 % and [50, 80] else, and four azimuths at right angles; a light near each camera."""
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    turn, low, high = uniform(0, math.pi / 2), uniform(-15, 50), uniform(50, 80)
    azimuth = (turn[:, None] + math.pi / 2 * torch.arange(4)).flatten()
    elevation = torch.deg2rad(torch.where(torch.rand(count, generator=generator) < 0.8, low, high)).repeat_interleave(4)
    distance, ambient = uniform(1.5, 2.1).repeat_interleave(4), uniform(0.35, 0.5).repeat_interleave(4)
    light = toward(azimuth, elevation) + 0.35 * torch.randn(4 * count, 3, generator=generator)
    return Shots(azimuth, elevation, distance, torch.full((4 * count,), FOVY), torch.zeros(4 * count, 3),
                 F.normalize(light, dim=-1), ambient)


def write_posed(out: Path) -> None:
    """Writes out/posed/SHAPE.pt: layers as bytes [4 G, H, W, layers], cameras [4 G, 3] (azimuth, elevation, distance)."""
    (out / "posed").mkdir(parents=True, exist_ok=True)
    for number, shape in enumerate(SHAPES):
        path = out / "posed" / f"{shape}.pt"
        if path.exists():
            continue
        shots = draw_groups(GROUPS, torch.Generator().manual_seed(200 + number))
        cameras = torch.stack([shots.azimuth, shots.elevation, shots.distance], dim=-1)
        torch.save({"layers": traced(tracer_of(shape, False), shots), "cameras": cameras}, path)
        print(f"posed: {shape}", flush=True)


@dataclass(frozen=True)
class Posed:
    """All views: layers [N, H, W, layers] bytes, shape indices [N], cameras [N, 3] (azimuth, elevation, distance)."""

    layers: Tensor
    shape: Tensor
    cameras: Tensor

    @staticmethod
    def load(out: Path) -> Posed:
        files = [torch.load(out / "posed" / f"{shape}.pt") for shape in SHAPES]
        return Posed(torch.cat([f["layers"] for f in files]), torch.arange(len(SHAPES)).repeat_interleave(4 * GROUPS),
                     torch.cat([f["cameras"] for f in files]))

    def split(self, test: bool) -> Tensor:
        """Returns the views of the groups for tests, or of the others."""
        group = torch.arange(len(self.shape)) % (4 * GROUPS) // 4
        return torch.nonzero((group >= GROUPS - TESTED) == test)[:, 0]

    def paint(self, index: Tensor, look: Tensor, background: Tensor | float = 1.0) -> Tensor:
        """Returns images [B, 3, H, W] of the views `index` in the looks (indices [B]), on white unless told."""
        layers = Layers(self.layers[index].to(DEVICE).float() / 255)
        behind = torch.as_tensor(background, device=DEVICE)
        return layers.over(PALETTE[look].to(DEVICE), behind).movedim(-1, 1)


def group_looks(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a random seen look [N] for the views of shapes [N], one for each group."""
    return draw_looks(shape[::4], generator, seen=True).repeat_interleave(4)


@torch.no_grad()
def write_latents(out: Path, vae: nn.Module) -> None:
    """Writes out/posed/latents.pt: for white and for random backgrounds (one a group) moments [P, N, 2, 4, 16, 16], not
    scaled, and looks [P, N]."""
    path, data, vae = out / "posed" / "latents.pt", Posed.load(out), vae.to(DEVICE)
    if path.exists():
        return
    found: dict[str, list[Tensor]] = {key: [] for key in ("white", "white_look", "mixed", "mixed_look")}
    for painting in range(PAINTINGS):
        generator = torch.Generator().manual_seed(300 + painting)
        for kind in ("white", "mixed"):
            look, moments = group_looks(data.shape, generator), []
            for index in torch.arange(len(data.shape)).split(64):
                behind = draw_backgrounds(16, SIZE, generator).repeat_interleave(4, dim=0)[:len(index)]
                images = 2 * data.paint(index, look[index], 1.0 if kind == "white" else behind) - 1
                with half_precision():
                    posterior = vae.encode(images).latent_dist
                moments.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu())
            found[kind].append(torch.cat(moments))
            found[f"{kind}_look"].append(look)
            print(f"latents: painting {painting} on {kind}", flush=True)
    torch.save({key: torch.stack(value) for key, value in found.items()}, path)
