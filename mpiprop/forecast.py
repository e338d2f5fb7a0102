"""What a configuration will take on so many ranks, as the command `plan` tells it: plan.py's laws with numbers put in.

The numbers are a run's own (its metrics.jsonl and config.yaml) or the user's; each thing assumed is told in a line.
"""

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import torch

from . import config
from .core.errors import UserError
from .core.memory import recycle_large_blocks
from .core.steps import Streams
from .core.theta import Drift
from .plan import Choice, Costs, Law, Work, choices, observe, table
from .recipe import Stage
from .report import RunSummary

BANDWIDTH = 2.5  # GB/s where nothing is known: 25 Gb Ethernet
ALWAYS = ("every slot of a window is evaluated in every iteration; rollout and messages do not overlap with evaluations",
          "messages go one after another through the link of rank 0, or of a group's first rank",
          "memory: vectors of D and L numbers alone; the process, the prior and what an evaluation needs come on top")


@dataclass(frozen=True)
class Basis:
    """What the prediction of a stage rests on."""

    costs: Costs
    law: Law
    assumed: tuple[str, ...]  # a line each


def told(args: Namespace) -> str:
    """The tables and the best command line, or all of it as JSON. Raises UserError where something is not known."""
    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks}: needs at least 1")
    run = config.load(args.config, args.overrides)
    parts, texts, best = [], [], []
    for index in range(len(run.stages)):
        stage = Stage(run, index, torch.device("cpu"))
        work = work_of(stage)
        basis = _basis(args, stage, work)
        found = choices(work, basis.costs, basis.law, args.ranks)
        best.append(found[0])
        parts.append({"work": asdict(work), "costs": asdict(basis.costs), "assumed": basis.assumed,
                      "choices": [asdict(choice) for choice in found]})
        views = "+".join(map(str, work.batches))
        texts += [f"stage {work.name}: {work.T} steps of {views} views, {work.D:,} trained numbers ({work.L - work.D:,} ride "
                  "along)", table(found), "assumed:", *(f"  {line}" for line in basis.assumed), ""]
    command = command_line(args.config, args.overrides, best)
    return json.dumps({"command": command, "stages": parts}, indent=1) if args.json else "\n".join([*texts, command])


def work_of(stage: Stage) -> Work:
    """What a stage has to do; of a batch that changes, its smallest size at the beginning, the middle and the end."""
    taus = (0, stage.T // 2, stage.T - 1)
    batches = tuple(min(len(views(tau, Streams(0, tau))) for tau in taus) for views in stage.views)
    layout = stage.scene.layout
    return Work(stage.name, stage.T, batches, layout.D, layout.L, len(stage.rollout().optimiser.slots))


def command_line(name: str, overrides: Sequence[str], best: Sequence[Choice]) -> str:
    """The command that runs each stage as chosen."""
    own = any({"size", "shards"} & set(stage.get("window") or {}) for stage in config.read(name, overrides)["stages"])
    if own or len({(choice.size, choice.shards) for choice in best}) > 1:
        keys = {f"stages.{i}.window": choice for i, choice in enumerate(best)}
    else:
        keys = {"window": best[0]}
    ranks = max(choice.ranks for choice in best)
    words = [*(["mpirun", "-n", str(ranks)] if ranks > 1 else []), "python", "-m", "mpiprop", "run", name, *overrides,
             *(word for key, choice in keys.items() for word in (f"{key}.size={choice.size}", f"{key}.shards={choice.shards}"))]
    return shlex.join(words)


def _basis(args: Namespace, stage: Stage, work: Work) -> Basis:
    window = stage.config.window
    law = Law.of(window.threshold, window.predict)
    if args.measured:
        basis = _measured(args, work, law)
    elif args.evaluate:
        notes = () if args.rollout else ("an optimiser step takes the time that it took here on the CPU (--rollout)",)
        basis = Basis(Costs(args.evaluate, args.rollout or _seconds_of_step(stage), 1e-9 / BANDWIDTH, args.fixed), law,
                      (*notes, _ratios(law, "what simulations gave")))
    else:
        raise UserError("plan: needs --measured RUN, or --evaluate SECONDS of one evaluation of a whole batch on one device")
    costs = basis.costs
    costs = replace(costs, evaluate=args.evaluate or costs.evaluate, rollout=args.rollout or costs.rollout,
                    byte=1e-9 / args.bandwidth if args.bandwidth else costs.byte)
    grows = ("the cloud stays as large as it begins: Gaussians that come on the way cost more",) if stage.scene.layout.N else ()
    speed = f"messages at {1e-9 / costs.byte:.3g} GB/s (--bandwidth)" if costs.byte else "messages that cost no time"
    return replace(basis, costs=costs, assumed=(
        f"{costs.evaluate:.3g} s for {work.part(1)} views on one device; {costs.rollout:.2g} s for an optimiser step; {speed}",
        *basis.assumed, *grows,
        f"{costs.fixed:.0%} of an evaluation does not depend on the number of views (--fixed), the rest is proportional to it",
        *ALWAYS))


def _measured(args: Namespace, work: Work, law: Law) -> Basis:
    folder, run = args.measured, config.load(str(args.measured / "config.yaml"))
    names = [stage.name for stage in run.stages]
    if work.name not in names:
        raise UserError(f"{folder}: has no stage {work.name!r} but {', '.join(names)}; measure a run of this configuration")
    index = names.index(work.name)
    records = [record for record in RunSummary.read(folder).records if record["stage"] == work.name]
    if not records:
        raise UserError(f"{folder}: has no slide of stage {work.name!r} in metrics.jsonl yet")
    then, window = work_of(Stage(run, index, torch.device("cpu"))), run.stages[index].window
    wanted = 1 + window.size * window.shards if window.size * window.shards > 1 else 1
    ranks = args.measured_ranks or records[-1].get("ranks", wanted)
    costs, law = observe(records, then, window.size, window.shards, ranks, args.fixed, law)
    if ranks == 1:
        costs = replace(costs, byte=1e-9 / BANDWIDTH)
    ratio = records[-1]["tau"] / records[-1]["k"]
    source = f"through {ratio:.2f} of {folder.name} at {window.size}" if window.size > 1 else "what simulations gave"
    return Basis(costs.scaled(then, work), law, (
        f"{folder.name} had window {window.size}, {window.shards} shards, {then.part(1)} views a step and {ranks} ranks "
        "(--measured-ranks), on devices like those to come", _ratios(law, source)))


def _ratios(law: Law, source: str) -> str:
    return f"T/K of a window: {source}; so {law(3):.1f} for 3, {law(7):.1f} for 7, {law(15):.1f} for 15"


def _seconds_of_step(stage: Stage) -> float:
    """Seconds of an optimiser step on this CPU, the least of some."""
    recycle_large_blocks()
    optimiser, theta = stage.rollout().optimiser, stage.scene.theta()
    x, drift, seconds = optimiser.start(theta), Drift(torch.ones_like(theta.trained)), []
    for _ in range(6):
        start = perf_counter()
        x = optimiser(drift, x)
        seconds.append(perf_counter() - start)
    return min(seconds)
