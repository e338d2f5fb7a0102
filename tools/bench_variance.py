"""What the running variance costs, of one step of a configuration.

    python -m tools.bench_variance [CONFIG] [key=value ...]

CPU time of one thread, the least of several runs. The sketch of the gradient tells whether all of it is finite, too, which
would take a pass of its own otherwise.
"""

import sys
import time
from collections.abc import Callable

import torch

from mpiprop.config import loader
from mpiprop.core import variance
from mpiprop.guidance import distillation
from mpiprop.objective import gradient
from mpiprop.optim.carried import Carried
from mpiprop.run.stage import Stage
from mpiprop.transport.messages import pack_drift, unpack_drift

RUNS = 7


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time of this thread for `work`, the least of RUNS runs after one to warm up."""
    work()
    taken = []
    for _ in range(RUNS):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return min(taken) * 1e3


def main(name: str = "demo", *overrides: str) -> None:
    torch.set_num_threads(1)
    stage = Stage(loader.load(name, overrides), 0, torch.device("cpu"))
    unit, rollout = stage.unit(stage.embeddings()), stage.rollout()
    x = rollout.start(stage.scene.theta())
    drift = unit(x.theta, 0)
    x = rollout(drift, x)
    step = milliseconds(lambda: unit(x.theta, 0)) + milliseconds(lambda: rollout(drift, x))
    g = torch.randn(len(unit.terms[0].views(0, stage.init)), *_space(stage))
    levels = torch.zeros(len(g), dtype=torch.int64)
    parts = {
        "sketch of the gradient": lambda: variance.sketch(stage.scene.grad[None], gradient.SKETCH[1]),
        "moments of each view's": lambda: variance.by_level(
            variance.moments(variance.sketch(g.flatten(1), distillation.SKETCH)), levels),
        "sums in a message": lambda: unpack_drift(pack_drift(drift)[0], drift.grad),
        "running averages": lambda: Carried({})(drift, x),
        "variances, once a slide": lambda: [variance.variances(averages) for averages in x.averages.values()]}
    saved = milliseconds(lambda: torch.stack(stage.scene.grad.aminmax()).tolist())
    print(f"{name}: {len(drift.grad):,} trained numbers, a step {step:.1f} ms")
    total = 0.0
    for part, work in parts.items():
        total += (value := milliseconds(work))
        print(f"  {part:26s} {value:8.3f} ms")
    print(f"  {'less the check for NaN':26s} {saved:8.3f} ms\n"
          f"  {'all':26s} {total - saved:8.3f} ms, {100 * (total - saved) / step:.2f} % of the step")


def _space(stage: Stage) -> tuple[int, ...]:
    """The shape of a view's gradient in the prior's space."""
    prior = stage.prior(stage.config.terms[0].guidance)
    return tuple(prior.encode(torch.zeros(1, 3, 8, 8), stage.init).shape[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
