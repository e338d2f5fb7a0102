"""Windows that cross steps at which Gaussians come and go, against windows that end there (DreamPropeller leaves it open).

    python -m tools.bench_clouds [--steps 60] [--window 7] [--seed 0]

The structure of demo/dreamgaussian on the prior known in closed form, in one process: every 9 steps Gaussians are cloned, split
and removed, every 25 opacities are reset. For each way: T/K; iterations that accepted steps no further than a window from a
change, and how many such steps there are; then, against the sequential run, the Gaussians at the end, how many of them are the
same (by lineage), and the mean difference of renders, as a share of what another seed makes of it.
"""

import argparse

import torch

from mpiprop.config import loader
from mpiprop.picard.window import Window
from mpiprop.run.stage import Stage
from mpiprop.run.outputs import frames
from mpiprop.transport.serial import Serial

TOY = ("prompt=a red ball", "stages.0.terms.0.views.batch=2", "stages.0.terms.0.views.size=16", "stages.0.terms.0.penalties={}",
       "stages.0.terms.0.guidance={use: 'SDS', prior: {use: 'ClosedForm'}, "
       "prompts: {use: 'Four'}, scale: 1.0}", "stages.0.optimiser.lr={geometry: 0.02}",
       *(f"stages.0.shape.{key}" for key in (
           "number=200", "ball=0.5", "opacity=0.3", "densify_every=9", "densify_from=9", "densify_until=45", "densify_most=600",
           "densify_gradient=0.1", "densify_size=0.09", "prune_opacity=0.05", "reset_every=25", "reset_opacity=0.2")))


class Way:
    """A run of the stage, its windows, and where it ended."""

    def __init__(self, *words: str) -> None:
        run = loader.load("demo/dreamgaussian", [*TOY, *words])
        self.stage = stage = Stage(run, 0, torch.device("cpu"))
        unit, rollout = stage.unit(stage.embeddings()), stage.rollout()
        window = stage.open_window(rollout, stage.scene.theta())
        self.windows: list[Window] = []
        for end in stage.scene.shape.ends(stage.T):
            for window in stage.propel(rollout)(window, Serial(unit, lambda: False), rollout, T=end):
                self.windows.append(window)
        self.end = window.x
        views = stage.views[0].turntable(8, (32, 32))
        self.pictures = frames(stage, self.end.theta, views)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="T")
    parser.add_argument("--window", type=int, default=7, help="p")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = [f"stages.0.steps={args.steps}", f"seed={args.seed}"]
    truth, other = Way(*base, "window.size=1"), Way(*base, f"seed={args.seed + 1}", "window.size=1")
    rules = truth.stage.scene.shape.rules
    changes = [tau for tau in range(1, args.steps) if rules.due(tau)]
    near = {tau for change in changes for tau in range(change - args.window + 1, change + args.window) if 0 < tau <= args.steps}
    apart = float((other.pictures - truth.pictures).abs().mean())
    print(f"T {args.steps}, window {args.window}, changes after steps {changes}: {len(near)} steps are near one; sequential: "
          f"{truth.end.theta.layout.N} Gaussians; another seed renders {apart:.4f} apart\n"
          "e     guesses   windows      T/K  iterations near  Gaussians  the same  renders apart", flush=True)
    for e in ("0", "auto"):
        for predict in ("momentum", "copy"):
            for cross in ("true", "false"):
                way = Way(*base, f"window.size={args.window}", f"window.threshold={e}", f"window.predict={predict}",
                          f"stages.0.shape.cross={cross}")
                taus = [range(window.x.tau - window.stride + 1, window.x.tau + 1) for window in way.windows]
                beside = sum(not near.isdisjoint(span) for span in taus)
                mine, theirs = (one.end.theta.ancestry[:, 0] for one in (way, truth))
                same = float(torch.isin(mine, theirs).float().mean())
                difference = float((way.pictures - truth.pictures).abs().mean()) / apart
                exact = torch.equal(way.end.theta.flat, truth.end.theta.flat) and torch.equal(mine, theirs)
                print(f"{e:5s} {predict:9s} {'cross' if cross == 'true' else 'end':9s} {args.steps / len(way.windows):6.2f}  "
                      f"{beside:15d}  {len(mine):9d}  {same:8.1%}  {'the same bits' if exact else format(difference, '.3f')}",
                      flush=True)


if __name__ == "__main__":
    main()
