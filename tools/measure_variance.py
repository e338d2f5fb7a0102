#!/usr/bin/env python
"""What control variates do for the variance of the gradient, at fixed points of one run, by Monte Carlo.

    tools/measure_variance.py [CONFIG] [--steps 30 150 300 450 600] [--draws 200] [--out FILE.png] [key=value ...]

CONFIG (default demo/steindreamer) is made without its control variates, one step after the other. At each of --steps its theta
is held fixed, and views, timesteps and noise are drawn anew. The gradient of one view in theta is linear in what the residual
is made of,

    g = J^T w (u + s e - mu_0 eps - mu_1 h),    u = eps_uncond, e = eps_cond - eps_uncond

(ASD: - eps_cond(x_t'), too; VSD: - l, which is what the LoRA predicts), so that the inner products of these parts give the
variance for every scale s and all weights mu at once. Every draw of views and timesteps has two of the noise, which tell the
variance that comes from the noise alone.

VSD is measured where CONFIG trains a LoRA. The gradient is that of the scene: what the LoRA learns has no variates.

    tools/measure_variance.py demo/prolificdreamer \
        stages.0.terms.0.guidance.variates="{use: Stein, estimator: {use: DPT, model: builtin}}"

Letters: N draws, two of the noise each; L noise levels; P parts of the gradient, in the order of PARTS; D trained numbers.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.config import loader  # noqa: E402  (from this checkout)
from mpiprop.core.memory import recycle_large_blocks  # noqa: E402
from mpiprop.core.streams import Streams  # noqa: E402
from mpiprop.core.theta import Theta  # noqa: E402
from mpiprop.core.variance import LEVELS  # noqa: E402
from mpiprop.guidance.asd import ASD  # noqa: E402
from mpiprop.guidance.distillation import Distillation, Sample, predictions  # noqa: E402
from mpiprop.guidance.queries import answered  # noqa: E402
from mpiprop.guidance.stein import Noise, Stein, products  # noqa: E402
from mpiprop.guidance.vsd import VSD  # noqa: E402
from mpiprop.objective.gradient import ComputationUnit  # noqa: E402
from mpiprop.priors.base import alpha_bar_at  # noqa: E402
from mpiprop.run.stage import Stage  # noqa: E402

PARTS = ("u", "e", "c'", "l", "eps", "h")  # c' is eps_cond(x_t') of ASD, l the LoRA's prediction of VSD, 0 where there is none
VARIATES = slice(4, 6)
SCALES = (1.0, 7.5, 100.0)  # uncond + scale (cond - uncond)
FORMS: dict[str, Noise] = {"noise": Noise(), "Stein alone": Stein(None, noise=False), "both": Stein(None)}
SEQUENCES, BEFORE = 20, 100  # simulated runs whose averages are looked at, and their steps before
DECAYS = (0.0, 0.9, 0.99)


@dataclass(frozen=True)
class Draws:
    """Inner products of the parts of the gradient of one view."""

    level: Tensor  # [N]
    latent: Tensor  # [N, P, P] in the prior's space, without w, as the weights' averages see them
    theta: Tensor  # [N, P, P] in theta, of the first noise
    apart: Tensor  # [N, P, P] in theta, of the difference of both noises
    mean: Tensor  # [L, P, D] sums over the draws of each level

    def variance(self, host: Tensor, mu: Tensor) -> tuple[float, float]:
        """The variance, and that from the noise alone, of host [P] less variates with weights mu [L, 2]."""
        parts = host.repeat(LEVELS, 1)
        parts[:, VARIATES] -= mu
        own = parts[self.level]
        second, alone = (torch.einsum("np,npq,nq->n", own, inner, own).mean() for inner in (self.theta, self.apart))
        N = len(self.level)
        mean = torch.einsum("lp,lpd->d", parts, self.mean.double()) / N
        return float((second - mean.square().sum()) * N / (N - 1)), float(alone) / 2


def drawn(unit: ComputationUnit, stage: Stage, theta: Theta, tau: int, seeds: range) -> Draws:
    """For each seed what the first view of a run of that seed would draw at theta, step tau, and a second noise."""
    scene, term, asd = stage.scene.load(theta, tau), unit.terms[0], None
    levels, latent, inner, apart = [], [], [], []
    sums = torch.zeros(LEVELS, len(PARTS), scene.layout.D)
    for seed in seeds:
        rng = Streams(seed, tau).of(stage.name).of(term.name)
        views = term.views(tau, rng)
        rng, views = rng.part(range(1), len(views)), views[:1]
        image = scene.render(views, tau, rng, needs=())
        guidance = term.guidance
        asd = asd or ASD(guidance.prior, guidance.prompts, t_min=guidance.t_min, t_max=guidance.t_max)
        x = guidance.prior.encode(image.rgb.permute(0, 3, 1, 2), rng)
        t, told, vectors = guidance.timesteps(1, tau, rng), guidance.prompts(views), []
        for noise in (rng, rng.of("second noise")):
            sample = Sample(guidance.prior, x.detach(), t, told, views, tau, noise, image)
            parts = residuals(sample, guidance, asd)
            if noise is rng:
                latent.append(products(parts)[0].double())
            vectors.append(torch.stack([carried(scene.grad, x, guidance.weight(alpha_bar_at(guidance.prior, t)) * part)
                                        for part in parts]))
        levels.append(sample.level)
        inner.append((vectors[0] @ vectors[0].mT).double())
        apart.append(((vectors[0] - vectors[1]) @ (vectors[0] - vectors[1]).mT).double())
        sums[sample.level[0]] += vectors[0]
    return Draws(torch.cat(levels), *map(torch.stack, (latent, inner, apart)), sums)


def joined(halves: Sequence[Draws]) -> Draws:
    """All draws together."""
    level, latent, theta, apart = (torch.cat([getattr(half, name) for half in halves])
                                   for name in ("level", "latent", "theta", "apart"))
    return Draws(level, latent, theta, apart, sum(half.mean for half in halves))


def residuals(sample: Sample, guidance: Distillation, asd: ASD) -> list[Tensor]:
    """The parts, each [1, C, h, w]."""
    uncond, cond = answered(predictions(sample, sample.x_t, sample.t))
    later = asd.shifted(sample)
    other = answered(sample.predicted(sample.noised(later, sample.eps), later, sample.condition.positive))
    learnt = answered(guidance.rendered(sample)) if isinstance(guidance, VSD) else torch.zeros_like(uncond)
    return [uncond, cond - uncond, other, learnt, *guidance.variates.variates(sample)]


def carried(grad: Tensor, x: Tensor, vector: Tensor) -> Tensor:
    """J^T vector [D], by the scene's buffer."""
    grad.zero_()
    x.backward(vector, retain_graph=True)
    return grad.clone()


def hosts(lora: bool) -> Iterator[tuple[str, Tensor, float]]:
    """Name, parts [P] without the noise that it subtracts itself, and how much of it that is; VSD where there is a LoRA."""
    for scale in SCALES:
        yield f"SDS {scale:g}", torch.tensor([1.0, scale, 0, 0, 0, 0], dtype=torch.float64), 1.0
    yield "ASD 7.5", torch.tensor([1.0, 7.5, -1, 0, 0, 0], dtype=torch.float64), 0.0
    for scale in SCALES if lora else ():
        yield f"VSD {scale:g}", torch.tensor([1.0, scale, 0, -1, 0, 0], dtype=torch.float64), 0.0


def gram(inner: Tensor, host: Tensor, form: Noise) -> Tensor:
    """Inner products [..., V + 1, V + 1] of a form's variates and the host, as its averages have them."""
    rows = torch.eye(len(PARTS), dtype=torch.float64)[VARIATES][:form.V]
    rows = torch.cat([rows, host[None]])
    return rows @ inner @ rows.mT


def by_level(values: Tensor, level: Tensor) -> Tensor:
    """Sums [L, ...] of values [N, ...]."""
    return torch.zeros(LEVELS, *values.shape[1:], dtype=values.dtype).index_add_(0, level, values)


def weights(form: Noise, baseline: float, sums: Tensor) -> Tensor:
    """Weights [L, 2] of a form from the sums of its averages."""
    mu = form.weights(baseline, sums)
    return torch.nn.functional.pad(mu, (0, 2 - mu.shape[1]))


def ideal(draws: Draws, host: Tensor, baseline: float, form: Noise, apart: bool) -> Tensor:
    """The weights [L, 2] that are best in theta for these draws: of the whole variance, or of that from the noise."""
    return weights(form, baseline, by_level(gram(draws.apart if apart else draws.theta, host, form), draws.level))


def crossed(halves: Sequence[Draws], host: Tensor, baseline: float, form: Noise) -> tuple[float, float]:
    """The variance, and that from the noise, under the weights that are best in theta for the other half of the draws. Under
    those that are best for the same draws it would seem lower than it is."""
    pairs = [[b.variance(host, ideal(a, host, baseline, form, apart))[apart] for apart in (False, True)]
             for a, b in (halves, halves[::-1])]
    return fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs)


def lagged(draws: Draws, host: Tensor, baseline: float, form: Noise, decay: float, views: int) -> list[Tensor]:
    """The weights [L, 2] that runs of `views` a step have after some steps of averaging; their draws are these, at random."""
    inner, level, found = gram(draws.latent, host, form), draws.level, []
    rng = Streams(0, 0)("variance.sequences")
    form.decay = decay
    for _ in range(SEQUENCES):
        state = torch.zeros(LEVELS, form.V + 1, form.V + 1, dtype=torch.float64)
        for _ in range(BEFORE):
            some = torch.randint(len(level), (views,), generator=rng)
            state = form.renewed("gram", state, by_level(inner[some], level[some]))
        found.append(weights(form, baseline, state))
    return found


def compared(halves: Sequence[Draws], views: int, lora: bool) -> dict[str, dict[str, tuple[float, float]]]:
    """For each host, by what is done with the variates: the variance and that from the noise."""
    table, draws = {}, joined(halves)
    for name, host, baseline in hosts(lora):
        row = {"host": draws.variance(host, torch.tensor([[baseline, 0.0]], dtype=torch.float64).repeat(LEVELS, 1))}
        for kind, form in FORMS.items():
            for decay in DECAYS if kind == "both" else (0.9,):
                pairs = [draws.variance(host, mu) for mu in lagged(draws, host, baseline, form, decay, views)]
                row[f"{kind}, decay {decay:g}"] = tuple(map(fmean, zip(*pairs)))
        table[name] = row | {f"{kind}, ideal": crossed(halves, host, baseline, FORMS[kind]) for kind in ("noise", "both")}
    return table


def shares(halves: Sequence[Draws]) -> dict[str, tuple[float, float]]:
    """Of the variance from the noise that each part of a host has, the share that the ideal weight of the noise, and of Stein's
    variate, removes."""
    found, none = {}, torch.zeros(LEVELS, 2, dtype=torch.float64)
    for p in range(VARIATES.start):
        host = torch.zeros(len(PARTS), dtype=torch.float64)
        host[p] = 1
        if (alone := joined(halves).variance(host, none)[1]) == 0:
            continue  # no LoRA
        found[PARTS[p]] = tuple(1 - crossed(halves, host, 0.0, FORMS[form])[1] / alone for form in ("noise", "Stein alone"))
    return found


def plot(tables: dict[int, dict[str, dict[str, tuple[float, float]]]], file: Path) -> None:
    """Draws the variances over the steps, one panel for each host."""
    from matplotlib import pyplot as plt

    names = list(next(iter(tables.values())))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 4), layout="constrained")
    for axis, host in zip(axes, names):
        for kind, style in (("host", "k-"), ("noise, decay 0.9", "C0--"), ("both, decay 0.9", "C1-"), ("both, ideal", "C2:")):
            axis.semilogy(list(tables), [table[host][kind][1] for table in tables.values()], style, label=kind)
        axis.set(title=host, xlabel="step")
    axes[0].set_ylabel("variance from the noise,\none view's gradient in theta")
    axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="demo/steindreamer")
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 150, 300, 450, 600])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("variance.png"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", default=[])
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    recycle_large_blocks()
    without = [*args.overrides, "stages.0.terms.0.guidance.variates=null"]
    plain, stage = (Stage(loader.load(args.config, more), 0, torch.device("cpu")) for more in (without, args.overrides))
    if not isinstance(stage.variates[stage.config.terms[0].name], Stein):
        parser.error(f"{args.config}: needs variates: {{use: Stein}} in the guidance of its first term")
    told = stage.embeddings()
    unit, rollout, probe = plain.unit(told), plain.rollout(), stage.unit(told)
    x, tables, views = rollout.start(plain.scene.theta()), {}, len(plain.views[0](0, plain.init))
    riding = stage.scene.theta()
    for tau in range(max(args.steps) + 1):
        if tau in args.steps:
            flat = torch.cat([x.theta.flat, riding.flat[len(x.theta.flat):]])
            half = args.draws // 2
            halves = [drawn(probe, stage, Theta(flat, riding.layout), min(tau, stage.T - 1), range(start, start + half))
                      for start in (1, 1 + half)]
            tables[tau] = compared(halves, views, stage.lora is not None)
            print(f"\nstep {tau}: variance of one view's gradient in theta; in brackets that from the noise\n")
            kinds = list(next(iter(tables[tau].values())))
            print("| host | " + " | ".join(kinds) + " |\n" + "|---" * (len(kinds) + 1) + "|")
            for host, row in tables[tau].items():
                print(f"| {host} | " + " | ".join(f"{a:.4g} ({b:.4g})" for a, b in row.values()) + " |")
            print("\nshare of the variance from the noise of each part that ideal weights of the noise, of Stein's variate "
                  "remove: " + ", ".join(f"{part} {a:.2f}, {b:.2f}" for part, (a, b) in shares(halves).items()), flush=True)
            plot(tables, args.out)
        if tau < stage.T:
            x = rollout(unit(x.theta, tau), x)
    print(args.out)


if __name__ == "__main__":
    main()
