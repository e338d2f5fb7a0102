#!/usr/bin/env python
"""What a checkpoint costs: seconds, GB/s and memory of a write, and how long evaluation stands still for one written aside.

    tools/bench_checkpoint.py --ranks 4 --size 12604720 --seconds 0.5

starts itself under mpirun. An evaluation is a wait that stands for the GPU. Slides with a checkpoint being written beside
them take turns with slides without, and with slides after which rank 0 writes and waits; what counts is the time of a slide
in which no worker evaluates, beyond that of the slides without.
"""

import argparse
import resource
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from time import perf_counter, sleep

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.launcher import relaunch  # noqa: E402

MINUTE = 60.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4, help="MPI ranks, rank 0 included")
    parser.add_argument("--size", type=int, default=12_604_720, help="D, trained numbers")
    parser.add_argument("--window", type=int, default=7, help="p; a checkpoint holds p + 1 thetas and two moments")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one emulated evaluation")
    parser.add_argument("--writes", type=int, default=5, help="checkpoints of each kind")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: a temporary one")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.ranks < 2:
        sys.exit("bench_checkpoint: needs at least 2 ranks")
    relaunch(args.ranks)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    import torch

    from mpiprop import transport
    from mpiprop.core.memory import recycle_large_blocks
    from mpiprop.core.theta import Drift, Layout, Theta
    from mpiprop.run.saver import Keeper
    from mpiprop.picard import threshold
    from mpiprop.picard.pipelined import propel
    from mpiprop.optim.optimisers import Adam
    from mpiprop.optim.rollout import Rollout
    from mpiprop.picard.window import Window
    from mpiprop.transport.base import End
    from mpiprop.transport.world import World

    torch.set_num_threads(1)
    recycle_large_blocks()
    D, layout = args.size, Layout.of([("theta", (args.size,), "theta")])
    grad = torch.randn(D, generator=torch.Generator().manual_seed(0))

    def unit(theta: Theta, tau: int, *part: int) -> Drift:
        sleep(args.seconds)
        return Drift(grad, {}, args.seconds)

    world = World.open()
    service = transport.connect(world, unit, layout, torch.device("cpu"), lambda: False)
    if isinstance(service, End):
        return

    class Timed(Keeper):
        """A keeper that tells how long its writes took."""

        def write(self, window: Window, complete: bool = False) -> None:
            start = perf_counter()
            super().write(window, complete)
            took.append(perf_counter() - start)

    took: list[float] = []
    rows: dict[str, list[float]] = defaultdict(list)  # seconds of a slide without evaluation, by what went on beside it
    written: dict[str, list[float]] = {}  # seconds of a write
    keeper = Timed(folder / "window.h5", "bench", 0, "", every_s=0)
    optimiser = Adam(layout, lr=0.01)
    clock, kind, left = 0.0, "warming up", 3
    window = Window(optimiser.start(Theta(torch.zeros(D), layout)), (), 1e9)  # all is accepted: every slide is a full one
    kinds = ["nothing", "aside", "nothing", "at once"] * args.writes + [""]
    for window in propel(window, service, Rollout(optimiser, lambda theta, tau: theta), p=args.window, T=10**9,
                         threshold=threshold.fixed, predict=optimiser.predict):
        still = perf_counter() - clock - service.busy.since(clock)[1]
        rows[kind].append(still)
        left -= 1
        if kind == "aside" and not keeper.writing.done():
            left = 1  # the slides of a write are those until it is done
        clock = perf_counter()
        if left <= 0:
            if took:
                written.setdefault(kind, []).extend(took)
                took.clear()
            kind = kinds.pop(0)
            if not kind:
                break
            left = {"nothing": 4, "aside": 1, "at once": 1}[kind]
            if kind == "aside":
                keeper.offer(window)
            elif kind == "at once":
                keeper.save(window)
    service.close(0)

    size = keeper.path.stat().st_size
    usual = fmean(rows["nothing"])
    print(f"{world.size - 1} workers, window {args.window}, D {D:,}, {args.seconds} s an evaluation; a checkpoint is "
          f"{size / 1e9:.3f} GB\nwithout checkpoints: {usual:.3f} s of a slide without evaluation")
    for kind in ("at once", "aside"):
        seconds = fmean(written[kind])
        extra = (sum(rows[kind]) - usual * len(rows[kind])) / args.writes
        print(f"{kind:8s}: {seconds:.2f} s ({min(written[kind]):.2f} to {max(written[kind]):.2f}), {size / seconds / 1e9:.2f} "
              f"GB/s; evaluation stood still for {extra:+.3f} s a checkpoint, {100 * extra / MINUTE:.2f} % of a minute")
    print(f"peak memory of rank 0: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
