"""Seconds of one core for rasterising a sphere, shading it by vertex and antialiasing it, and for the gradient of all.

    python -m tools.bench_raster [--size 512] [--subdivisions 6] [--views 1] [--device cpu]

Six subdivisions of an icosahedron are 81 920 faces. Figures are milliseconds, the least of several runs: CPU time of
one thread, or on a GPU wall-clock time.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mpiprop.render.raster import antialias, clip, interpolate, neighbours, rasterize
from mpiprop.views.cameras import turntable


def icosphere(subdivisions: int) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] and faces [F, 3] of the unit sphere."""
    from trimesh.creation import icosphere

    mesh = icosphere(subdivisions=subdivisions)
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces)


def milliseconds(work: Callable[[], object], clock: Callable[[], float], runs: int = 7) -> float:
    """Time of `work`, the least of several runs after one to warm up."""
    taken = []
    for _ in range(runs + 1):
        start = clock()
        work()
        taken.append(clock() - start)
    return min(taken[1:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="H = W")
    parser.add_argument("--subdivisions", type=int, default=6, help="of the icosahedron: 20 x 4^n faces")
    parser.add_argument("--views", type=int, default=1, help="B")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vertices, faces = (each.to(args.device) for each in icosphere(args.subdivisions))
    views = turntable(args.views, 0.3, 3.0, 0.8, 2 * (args.size,)).to(args.device)
    vertices.requires_grad_()
    positions, adjacent = clip(views, vertices), neighbours(faces)
    fragments = rasterize(positions, faces, views.size)
    colour = interpolate(vertices[None], faces, fragments)

    def image() -> Tensor:
        positions = clip(views, vertices)
        fragments = rasterize(positions, faces, views.size)
        return antialias(interpolate(vertices[None], faces, fragments), fragments, positions, faces, adjacent)

    def wall() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    loss = image().square().sum()
    share = (fragments.face >= 0).float().mean()
    print(f"{args.views} x {args.size} x {args.size} pixels, {share:.0%} covered, {len(faces)} faces, {args.device}")
    for name, work in (("rasterize", lambda: rasterize(positions, faces, views.size)),
                       ("interpolate", lambda: interpolate(vertices[None], faces, fragments)),
                       ("antialias", lambda: antialias(colour, fragments, positions, faces, adjacent)),
                       ("neighbours (once per topology)", lambda: neighbours(faces)),
                       ("all, forward", image),
                       ("all, backward", lambda: torch.autograd.grad(loss, vertices, retain_graph=True))):
        print(f"  {name:32s} {milliseconds(work, wall if vertices.is_cuda else time.thread_time):9.1f} ms")


if __name__ == "__main__":
    main()
