"""The training loop of the built-in weights: AdamW, a moving average of them, checkpoints that a run resumes from.

The rate warms up, stays, and falls to zero over the last quarter: until then `steps` of a plan may be changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERY = 180  # seconds from one checkpoint to the next


@dataclass(frozen=True)
class Plan:
    """One training run."""

    steps: int
    batch: int
    rate: float
    seed: int
    warmup: int = 200
    decay: float = 1e-2  # of AdamW
    average: float = 0.999  # of the exponential moving average of the weights

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup, max(self.steps - step, 0) / (0.25 * self.steps))


def on_this_device(plans: dict[str, Plan], gpu: dict[str, tuple[int, int]]) -> dict[str, Plan]:
    """Returns the plans, on a GPU with the steps and batches given for it."""
    if DEVICE == "cpu":
        return plans
    return {name: replace(plan, steps=gpu[name][0], batch=gpu[name][1]) for name, plan in plans.items()}


def half_precision() -> torch.autocast:
    """Returns the context in which a network computes in bfloat16."""
    return torch.autocast(DEVICE, torch.bfloat16)


def on_device(generator: torch.Generator) -> torch.Generator:
    """Returns a generator on DEVICE whose seed is drawn from one on the CPU."""
    return torch.Generator(DEVICE).manual_seed(torch.randint(2**62, (), generator=generator).item())


def train(model: nn.Module, plan: Plan, loss: Callable[[int, torch.Generator], Tensor], path: Path) -> nn.Module:
    """Returns the moving average of `model` after `plan`; `loss(step, generator)` draws a batch by a generator on the
    CPU; resumable."""
    model.to(DEVICE)
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, plan.factor)
    smooth = torch.optim.swa_utils.get_ema_multi_avg_fn(plan.average)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=smooth)
    states = {"model": model, "optimiser": optimiser, "schedule": schedule, "average": average}
    start = 0
    if path.exists():
        saved = torch.load(path, map_location=DEVICE)
        start = saved.pop("step")
        for key, state in saved.items():
            states[key].load_state_dict(state)
    begun = written = time.monotonic()
    used, mean = time.process_time(), None
    for step in range(start, plan.steps):
        optimiser.zero_grad(set_to_none=True)
        value = loss(step, torch.Generator().manual_seed(plan.seed * 10**6 + step))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step == 3 * plan.warmup:  # the first steps say nothing: the average starts here
            average.module.load_state_dict(model.state_dict())
        average.update_parameters(model)
        mean = value.detach() if mean is None else torch.lerp(value.detach(), mean, 0.98)
        if (step + 1) % 100 == 0:
            seconds, cpu = time.monotonic() - begun, time.process_time() - used
            print(f"{path.stem}: step {step + 1}/{plan.steps} loss {float(mean):.4f}, "
                  f"{seconds:.0f} s, {cpu:.0f} s of CPU", flush=True)
        if time.monotonic() - written > EVERY or step + 1 == plan.steps:
            fresh = path.with_suffix(".new")
            torch.save({"step": step + 1, **{key: state.state_dict() for key, state in states.items()}}, fresh)
            fresh.replace(path)
            written = time.monotonic()
    return average.module.eval()


def weighted(error: Tensor, t: Tensor, scheduler: object, least: float) -> Tensor:
    """Returns the mean of the errors of the noise [B, C, H, W] under the weight that makes it one of the latents
    weighted SNR clamped to [`least`, 5]: min-SNR (arXiv 2303.09556), and truncated below (arXiv 2202.00512), since
    where noise hides the picture nothing but the condition says which side is seen."""
    bar = scheduler.alphas_cumprod.to(t.device)[t]
    snr = bar / (1 - bar)
    return (error.square().mean(dim=(1, 2, 3)) * (snr.clamp(least, 5) / snr)).mean()


def averaged(path: Path) -> dict[str, Tensor]:
    """Returns the moving average that a checkpoint holds."""
    saved = torch.load(path, map_location="cpu")["average"]
    return {key.removeprefix("module."): value for key, value in saved.items() if key.startswith("module.")}


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def sheet(images: Tensor, columns: int, path: Path) -> None:
    """Writes images [B, 3, H, W] in [0, 1] as a contact sheet at twice their size; a row begun is left out."""
    from PIL import Image

    rows = torch.cat([torch.cat(list(row), dim=-1) for row in images.split(columns) if len(row) == columns], dim=-2)
    pixels = (rows.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    width, height = 2 * pixels.shape[1], 2 * pixels.shape[0]
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(path)
