"""A few steps of systems at the papers' scale: seconds of an evaluation, beside a bare loop of the same calls; memory of root
and worker; the costs that `mpiprop plan` needs. Two evaluations of the same step must have the same bits."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from mpiprop.config import loader
from mpiprop.core import schedules
from mpiprop.core.streams import Streams
from mpiprop.core.theta import Theta
from mpiprop.run.stage import Stage
from mpiprop.objective.gradient import ComputationUnit
from tools.rehearsal.book import Section, fresh_peak, peak_gb, timed

SYSTEMS = (("dreamfusion-sd", 0, 0), ("prolificdreamer", 0, 0), ("prolificdreamer", 0, 6000), ("dreamgaussian", 0, 0),
           ("dreamgaussian", 0, 300), ("magic3d-sd", 1, 0))  # configuration, stage, step
TINY = {"HashGrid": {"log2_table": 10}, "DMTet": {"log2_table": 10, "resolution": 12}, "Gaussians": {"number": 100}}


def overrides(name: str, index: int, model: str, small: bool, batch: int | None = None) -> list[str]:
    """Of a configuration, for the rehearsal's model."""
    stage, where = loader.load(name).stages[index], f"stages.{index}"
    given = [f"{where}.terms.0.guidance.prior.model={model}", f"{where}.terms.0.guidance.prior.variant=null",
             "prompt=a red chair"]
    if small:
        shape = stage.shape.use
        given += [f"{where}.shape.{key}={value}" for key, value in TINY[shape].items()]
        given += [f"{where}.terms.0.views.size=16"] + [f"{where}.render.samples=32"] * (stage.render.use == "Volume")
        batch = batch or 2
    return given + ([f"{where}.terms.0.views.batch={batch}"] if batch else [])


def bare(unit: ComputationUnit, theta: Theta, tau: int) -> dict[str, Callable[[], None]]:
    """The heavy calls of one evaluation and nothing else: rendering, encoding and predicting, each with what of it is
    differentiated, and all of them."""
    scene, (term,) = unit.scene, unit.terms
    guidance, prior = term.guidance, term.guidance.prior
    rng = Streams(unit.seed, tau).of(unit.stage).of(term.name)
    views = term.views(tau, rng)
    rng = rng.part(range(len(views)), len(views))
    weights = {name for name, schedule in term.penalties.items() if schedules.at(schedule, tau)}
    scene.load(theta, tau)
    device, told = scene.device, guidance.prompts(views)
    rows = [inputs["text"] for inputs in (told.positive, told.unconditional, *told.negatives)]
    R, B = len(rows), len(rows[0])
    side = prior.resolution
    rgb = torch.rand(B, 3, *views.size, generator=rng("rgb")).to(device).requires_grad_()
    small = side // 2 ** (len(prior.vae.config.block_out_channels) - 1)
    x_t = torch.randn(R * B, 4, small, small, generator=rng("x")).to(device, prior.dtype)
    t, text = torch.full((R * B,), 500, device=device), torch.cat(rows).to(prior.dtype)

    def picture() -> torch.Tensor:
        return scene.render(views, tau, rng, needs=term.needs(weights)).rgb.permute(0, 3, 1, 2)

    def latents(pixels: torch.Tensor) -> torch.Tensor:
        pixels = F.interpolate(pixels, (side, side), mode="bilinear") * 2 - 1
        return prior.vae.encode(pixels.to(prior.dtype)).latent_dist.mean.float()

    def predict() -> None:
        with torch.no_grad():
            prior.unet(x_t, t, encoder_hidden_states=text)

    def learn() -> torch.Tensor | float:
        if not hasattr(guidance, "lora"):
            return 0.0
        x, cameras, one = x_t[:B].float(), views.c2w.flatten(1).to(device), rows[0]
        guidance.lora.network(tau).eps(x, t[:B], one, cameras)
        return guidance.lora.loss(x, t[:B], x, one, cameras, tau)

    def everything() -> None:
        x0 = latents(picture())
        predict()
        (x0.square().mean() + learn()).backward()

    def with_lora() -> None:
        predict()
        if isinstance(loss := learn(), torch.Tensor):
            loss.backward()
    return {"render": lambda: picture().mean().backward(), "encode": lambda: latents(rgb).square().mean().backward(),
            "predict": with_lora, "all": everything}


def measure(section: Section, device: torch.device, name: str, index: int, tau: int, batch: int | None) -> None:
    """Rows of one system at one step."""
    run = loader.load(name, overrides(name, index, str(section.work / "model"), section.small, batch))
    stage, runs = Stage(run, index, device), 1 if section.small else 3
    unit, rollout = stage.unit(stage.embeddings()), stage.rollout()
    x = rollout.start(stage.scene.theta())
    theta, what = x.theta, f"{name} {stage.name} step {tau}"
    B = len(unit.terms[0].views(tau, Streams(0, tau)))
    fresh_peak(device)
    drift = unit(theta, tau)
    drift = replace(drift, grad=drift.grad.clone(), statistics={name: each.clone() for name, each in drift.statistics.items()})
    first, again = drift.grad, unit(theta, tau).grad
    section.row(f"{what}: same bits twice", str(torch.equal(first, again)).lower(), ok=torch.equal(first, again),
                note=f"{B} views, {theta.layout.D:,} trained numbers")
    whole = timed(lambda: unit(theta, tau), device, runs)
    section.row(f"{what}: worker's memory", peak_gb(device), "GB")
    fixed = 1.0
    if B > 1:
        part = timed(lambda: unit(theta, tau, 0, 2), device, runs)
        share = (B // 2) / B
        fixed = min(1.0, max(0.0, (part / whole - share) / (1 - share)))
    calls = bare(unit, theta, tau)
    calls["all"]()
    seconds = {call: timed(work, device, runs) for call, work in calls.items()}
    section.row(f"{what}: an evaluation", whole, "s",
                note="bare calls: " + ", ".join(f"{call} {taken:.3g} s" for call, taken in seconds.items()))
    section.row(f"{what}: more than the bare loop", 100 * (whole / seconds["all"] - 1), "%")
    fresh_peak(device)
    rolled = timed(lambda: rollout(drift, x.copy()), device, runs) - timed(x.copy, device, runs)
    held = [replace(drift, grad=first.clone()) for _ in range(run.stages[index].window.size)]
    guesses = list(rollout.predict(rollout(held[0], x.copy()), len(held)))
    section.row(f"{what}: root's memory", peak_gb(device), "GB", note=f"window {len(guesses)}, beside the worker's networks")
    section.row(f"{what}: costs", f"c {whole * (1 - fixed) / B:.3g} s a view, f {fixed:.2f}, r {max(rolled, 0):.3g} s",
                plan={"config": name, "stage": stage.name, "tau": tau, "evaluate": whole, "fixed": fixed,
                      "rollout": max(rolled, 1e-6), "numbers": theta.layout.D})


def main() -> None:
    section = Section.of(__doc__)
    device = section.device()
    for name, index, tau in SYSTEMS:
        if section.left < (5 if section.small else 25):
            section.row(f"{name} step {tau}", "not reached", ok=False)
            continue
        with section.attempt(f"{name} step {tau}"):
            try:
                measure(section, device, name, index, tau, None)
            except torch.OutOfMemoryError as error:
                section.row(f"{name} step {tau}: its whole batch", ok=False, note=f"out of memory: {str(error)[:150]}")
                fresh_peak(device)
                measure(section, device, name, index, tau, 2)
        fresh_peak(device)


if __name__ == "__main__":
    main()
