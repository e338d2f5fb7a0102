"""The training loop of the built-in weights: AdamW, warm-up and cosine, a moving average, resumable checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Plan:
    """One training run: the learning rate warms up over `warmup` steps and falls to zero along a cosine."""

    steps: int
    batch: int
    rate: float
    seed: int
    warmup: int = 100
    decay: float = 1e-2  # of AdamW
    average: float = 0.999  # of the exponential moving average of the weights

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1)))


def train(model: nn.Module, plan: Plan, loss: Callable[[int, torch.Generator], Tensor], path: Path) -> nn.Module:
    """Returns the moving average of `model` after `plan`; `loss(step, generator)` draws a batch; resumable."""
    start = 0
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, plan.factor)
    smooth = torch.optim.swa_utils.get_ema_multi_avg_fn(plan.average)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=smooth)
    states = {"model": model, "optimiser": optimiser, "schedule": schedule, "average": average}
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
            seconds = time.monotonic() - begun
            print(f"{path.stem}: step {step + 1}/{plan.steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == plan.steps:
            fresh = path.with_suffix(".new")
            torch.save({"step": step + 1, **{key: state.state_dict() for key, state in states.items()}}, fresh)
            fresh.replace(path)
    return average.module.eval()


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def sheet(images: Tensor, columns: int, path: Path) -> None:
    """Writes images [B, 3, H, W] in [0, 1] as a contact sheet at twice their size."""
    from PIL import Image

    rows = torch.cat([torch.cat(list(row), dim=-1) for row in images.split(columns)], dim=-2)
    pixels = (rows.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    width, height = 2 * pixels.shape[1], 2 * pixels.shape[0]
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(path)
