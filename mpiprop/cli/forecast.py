"""The command `plan`: applies the laws of planning/laws.py to a configuration.

The numbers come from a measured run (its metrics.jsonl and config.yaml), from options, or from planning/constants.py. Each
assumption is printed in a line.
"""

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import torch

from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.core.memory import recycle_large_blocks
from mpiprop.core.streams import Streams
from mpiprop.core.theta import Drift
from mpiprop.planning.constants import BANDWIDTH, FAST, MIDDLE, PUBLISHED, SLOW
from mpiprop.planning.laws import Choice, Costs, Law, Work, choices, observe, table
from mpiprop.report import RunSummary
from mpiprop.report.made import counted
from mpiprop.run.stage import Stage

ALWAYS = ("every slot of a window is evaluated in every iteration; rollout and messages do not overlap with evaluations",
          "messages go one after another through the link of rank 0, or of a group's first rank",
          "memory: theta, gradients, averages and the prior's weights; the process and what an evaluation needs come on top")


@dataclass(frozen=True)
class Basis:
    """The measurements and assumptions of a stage's prediction."""

    costs: Costs
    law: Law
    assumed: tuple[str, ...]  # a line each
    measured: bool = True  # or given by the user: times mean something


def text(args: Namespace) -> str:
    """The tables and the best command line, or all of it as JSON. Raises UserError where something is missing."""
    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks}: needs at least 1")
    run = loader.load(args.config, args.overrides)
    parts, texts, best = [], [], []
    for index in range(len(run.stages)):
        stage = Stage(run, index, torch.device("cpu"))
        work = work_of(stage)
        work, weighed = _weighed(stage, work)
        basis = _basis(args, stage, work)
        found = choices(work, basis.costs, basis.law, args.ranks)
        ends = () if basis.measured else [choices(work, replace(basis.costs, evaluate=seconds), basis.law, args.ranks)
                                          for seconds in (SLOW, FAST)]
        best.append(found[0])
        parts.append({"work": asdict(work), "costs": asdict(basis.costs), "measured": basis.measured,
                      "assumed": (*basis.assumed, *weighed), "choices": [asdict(choice) for choice in found]})
        texts += [f"stage {work.name}: {counted(work.T, 'step')} of {counted(work.part(1), 'view')}, {work.D:,} trained numbers"
                  + (f", plus {work.L - work.D:,} stored but not trained" if work.L > work.D else ""), table(found, *ends),
                  "assumed:", *(f"  {line}" for line in (*basis.assumed, *weighed)), ""]
    command = command_line(args.config, args.overrides, best)
    return json.dumps({"command": command, "stages": parts}, indent=1) if args.json else "\n".join([*texts, command])


def work_of(stage: Stage) -> Work:
    """The size of a stage. Of a batch whose size changes, the smallest at the beginning, the middle and the end."""
    taus = (0, stage.T // 2, stage.T - 1)
    batches = tuple(min(len(views(tau, Streams(0, tau))) for tau in taus) for views in stage.views)
    layout = stage.scene.layout
    return Work(stage.name, stage.T, batches, layout.D, layout.L, len(stage.rollout().optimiser.slots))


def _weighed(stage: Stage, work: Work) -> tuple[Work, tuple[str, ...]]:
    """`work` with the bytes of the priors' weights, and a note where they are not known."""
    try:
        return replace(work, weights=stage.weight_bytes()), ()
    except UserError as error:
        return work, (f"memory of a worker is without the prior's weights, which are not to be had here: {error}",)


def command_line(name: str, overrides: Sequence[str], best: Sequence[Choice]) -> str:
    """The command that runs each stage as chosen."""
    own = any({"size", "shards"} & set(stage.get("window") or {}) for stage in loader.read(name, overrides)["stages"])
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
    else:
        notes = () if args.rollout else ("an optimiser step takes the time that it took here on the CPU (--rollout)",)
        costs = Costs(args.evaluate or MIDDLE, args.rollout or _seconds_of_step(stage), 1e-9 / BANDWIDTH, args.fixed)
        basis = Basis(costs, law, (*notes, _ratios(law, "fitted to runs of toy")), measured=args.evaluate is not None)
    costs = basis.costs
    costs = replace(costs, evaluate=args.evaluate or costs.evaluate, rollout=args.rollout or costs.rollout,
                    byte=1e-9 / args.bandwidth if args.bandwidth else costs.byte)
    grows = ("the cloud stays as large as it begins: Gaussians that come on the way cost more",) if stage.scene.layout.N else ()
    views = f"{counted(work.part(1), 'view')} on one device"
    evaluation = f"{costs.evaluate:.3g} s for {views}"
    if not basis.measured:
        evaluation = (f"nothing was measured: between {FAST:g} and {SLOW:g} s for {views} "
                      f"({PUBLISHED}), so no times are shown; --measured RUN or --evaluate SECONDS gives them")
    speed = f"messages at {1e-9 / costs.byte:.3g} GB/s (--bandwidth)" if costs.byte else "messages that cost no time"
    return replace(basis, costs=costs, assumed=(
        evaluation, f"{costs.rollout:.2g} s for an optimiser step; {speed}",
        *basis.assumed, *grows,
        f"{costs.fixed:.0%} of an evaluation does not depend on the number of views (--fixed), the rest is proportional to it",
        *ALWAYS))


def _measured(args: Namespace, work: Work, law: Law) -> Basis:
    folder, run = args.measured, loader.load(str(args.measured / "config.yaml"))
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
    source = f"through {ratio:.2f} of {folder.name} at {window.size}" if window.size > 1 else "fitted to runs of toy"
    return Basis(costs.scaled(then, work), law, (
        f"{folder.name} had window {window.size}, {counted(window.shards, 'shard')}, {counted(then.part(1), 'view')} a step "
        f"and {counted(ranks, 'rank')} (--measured-ranks), on devices like those to come", _ratios(law, source)))


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
