#!/usr/bin/env python
"""The engine alone: an evaluation is a wait of given seconds that stands for the GPU, on vectors of any size.

    tools/bench_engine.py --ranks 8 --size 12604720 --seconds 0.5

starts itself under mpirun (with --shards S, groups of S ranks take a step's batch apart) and prints,
per slide and in total, the seconds in which an evaluation ran, in the rollout and
in transport, the speed-up over the sequential run (T x seconds + the measured optimiser steps), and what the same bytes
cost at the speed of a memory copy in this process.
"""

import argparse
import resource
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.launcher import relaunch  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8, help="MPI ranks; 1 is the in-process transport")
    parser.add_argument("--size", type=int, default=12_604_720, help="D, trained numbers")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one emulated evaluation")
    parser.add_argument("--steps", type=int, default=100, help="T")
    parser.add_argument("--window", type=int, default=None, help="p; default: the number of groups")
    parser.add_argument("--shards", type=int, default=1, help="ranks that share a step's batch")
    parser.add_argument("--threshold", default="auto", help="auto, or a number (kept fixed)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.ranks > 1:
        relaunch(args.ranks)
    run(args)


def run(args: argparse.Namespace) -> None:
    import torch

    from mpiprop import transport
    from mpiprop.core import memory
    from mpiprop.core.theta import Drift, Layout, Theta
    from mpiprop.picard import threshold
    from mpiprop.picard.pipelined import propel
    from mpiprop.optim.optimisers import Adam
    from mpiprop.optim.rollout import Rollout
    from mpiprop.picard.window import Window
    from mpiprop.transport.base import End
    from mpiprop.transport.world import World

    torch.set_num_threads(1)
    memory.recycle_large_blocks()
    D, layout = args.size, Layout.of([("theta", (args.size,), "theta")])

    class Emulated:
        """A gradient towards zero with noise that depends on the step, and a wait."""

        def __init__(self) -> None:
            self.noise = torch.randn(D + 1009, generator=torch.Generator().manual_seed(0))
            self.grad = torch.empty(D)

        def __call__(self, theta: Theta, tau: int, part: int = 0, parts: int = 1) -> Drift:
            start = perf_counter()
            shift = tau * 7919 % 1009
            torch.add(self.noise[shift:shift + D], theta.trained, alpha=0.1, out=self.grad).div_(parts)
            sleep(max(0.0, args.seconds / parts - (perf_counter() - start)))
            return Drift(self.grad, {}, perf_counter() - start)

    world = World.open()
    unit = Emulated() if world.rank or world.size == 1 else None
    service = transport.connect(world, unit, layout, torch.device("cpu"), lambda: False, shards=args.shards, patience=60.0)
    if isinstance(service, End):
        return

    workers = max(1, -(-(args.ranks - 1) // args.shards))
    p, T = args.window or workers, args.steps
    optimiser = Adam(layout, lr=0.01)
    rollout = Rollout(optimiser, lambda theta, tau: theta)
    in_rollout = [0.0]

    def h_dagger(drift: Drift, x):
        start = perf_counter()
        x = rollout(drift, x)
        in_rollout[0] += perf_counter() - start
        return x

    rule, e = (threshold.relative(0.9, 10.0), 0.0) if args.threshold == "auto" else (threshold.fixed, float(args.threshold))
    window = Window(optimiser.start(Theta(memory.zeros(D), layout)), (), e)
    clock, rows = perf_counter(), []
    print(f"{args.ranks} ranks, {workers} groups of {args.shards}, window {p}, D {D:,}, {args.seconds} s an evaluation, "
          f"{T} steps\n"
          "slide   tau  stride  seconds  evaluating  rollout  outside", flush=True)

    def gathered() -> None:  # as a run does
        nonlocal window
        window = replace(window, guess=())

    for window in propel(window, service, h_dagger, p=p, T=T, threshold=rule, predict=optimiser.predict, gathered=gathered):
        now = perf_counter()
        rows.append((now - clock, service.busy.since(clock)[1], in_rollout[0]))
        in_rollout[0], clock = 0.0, now
        seconds, evaluating, rolled = rows[-1]
        print(f"{window.k:5d} {window.x.tau:5d} {window.stride:7d} {seconds:8.3f} {evaluating:11.3f} {rolled:8.3f}"
              f" {seconds - evaluating:8.3f}", flush=True)
    service.close(0)

    total, evaluating, rolled = (sum(column) for column in zip(*rows))
    K = len(rows)
    a, b = torch.zeros(D), torch.ones(D)
    b.copy_(a)
    start = perf_counter()
    for _ in range(10):
        b.copy_(a)
    copy = (perf_counter() - start) / 10
    sent = 2 * p * copy
    sequential = T * args.seconds + rolled / K / p * T
    outside = (total - evaluating) / K
    print(f"\ntotal {total:.2f} s: evaluating {evaluating:.2f}, rollout {rolled:.2f}, transport and the rest "
          f"{total - evaluating - rolled:.2f} (rollout overlaps with evaluation where it can)")
    print(f"T/K {T / K:.2f}, speed-up over the sequential emulated run ({sequential:.1f} s): {sequential / total:.2f}")
    print(f"outside evaluation: {outside:.3f} s a slide ({100 * outside / (total / K):.0f} %)")
    print(f"the same bytes at memory-copy speed ({4 * D / copy / 1e9:.1f} GB/s): messages {sent:.3f} s a slide, with the "
          f"rollout's reads and writes {sent + 4.5 * p * copy:.3f} s; ratio {outside / (sent + 4.5 * p * copy):.2f}")
    print(f"peak memory of the root: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
