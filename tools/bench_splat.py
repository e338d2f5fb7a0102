"""Milliseconds of one core for drawing one view of a cloud of Gaussians, and for the gradient of it.

    python -m tools.bench_splat [--device cpu] [--backend torch]

Clouds: "init", DreamGaussian's start (a ball of radius 0.5, opacity 0.1, round, as wide as the neighbours are far), and
"trained" (anisotropic, opacities up to 0.97). Camera at 2.5 with a field of view of 49.1 degrees. The least of several runs:
CPU time of one thread, or on a GPU wall-clock time.
"""

import argparse
import time

import torch

from mpiprop.core.memory import recycle_large_blocks
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.render.splat import Splat
from mpiprop.shapes.clouds.base import Cloud, Splats
from mpiprop.shapes.clouds.gaussians import ball, spacing
from mpiprop.views.cameras import turntable
from tools.bench_raster import milliseconds


class Fixed(Cloud):
    """Gaussians as they are."""

    def __init__(self, kind: str, N: int, device: str) -> None:
        super().__init__()
        rng = Streams(0, 0)
        means = ball(rng("means"), N, 0.5)
        scales = spacing(means)[:, None].expand(-1, 3)
        opacities = torch.full((N,), 0.1)
        if kind == "trained":
            scales = scales * (0.5 * normal(rng("scales"), N, 3)).exp()
            opacities = uniform(rng("opacities"), N, lo=0.05, hi=0.97)
        rotations = torch.nn.functional.normalize(normal(rng("rotations"), N, 4), dim=-1)
        raw = (means, scales, rotations, opacities, torch.zeros(N, 1, 3))
        self.tensors = [tensor.to(device).clone().requires_grad_() for tensor in raw]

    def splats(self) -> Splats:
        return Splats(*self.tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recycle_large_blocks()  # as the program does
    render = Splat(backend=args.backend)

    def clock() -> float:
        if args.device == "cpu":
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    print("     N   px  cloud    forward  both (ms)")
    for N in (1000, 5000, 20000):
        for size in (64, 128):
            views = turntable(1, 0.2, 2.5, 49.1 / 57.29577951, (size, size)).to(args.device)
            for kind in ("init", "trained"):
                cloud = Fixed(kind, N, args.device)

                def image() -> torch.Tensor:
                    return render(cloud, None, torch.ones_like, views).rgb

                forward = milliseconds(image, clock)
                both = milliseconds(lambda: torch.autograd.grad(image().square().sum(), cloud.tensors), clock)
                print(f"{N:6d}  {size:3d}  {kind:8s} {forward:6.1f} {both:6.1f}", flush=True)


if __name__ == "__main__":
    main()
