"""Seconds of one core for each part of rendering a scene and taking its gradient, beside plain autograd.

    python -m tools.bench_render

Figures are milliseconds of CPU time of one thread, the least of several runs.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.render.volume import Volume
from mpiprop.objective.scene import Scene
from mpiprop.appearance.backgrounds import NeuralEnvironment
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.shapes.fields.hashgrid import HashGrid
from mpiprop.appearance.materials import Diffuse
from mpiprop.views.samplers import Random

RNG = Streams(0, 0)
DEMO = dict(radius=0.8, levels=8, log2_table=14, base_resolution=8, growth=1.45, start_level=8, hidden=32, blob_std=0.4)
SCALES = {"demo: 4 x 32 x 32 pixels, 96 steps, 8 levels of 2^14": (DEMO, 96, 4, 32),
          "paper, 1 of 16 views: 64 x 64 pixels, 512 steps, 16 levels of 2^19": (dict(start_level=16), 512, 1, 64)}


def milliseconds(work: Callable[[], object], runs: int = 7) -> float:
    """CPU time of this thread for `work`, the least of several runs after one to warm up."""
    work()
    taken = []
    for _ in range(runs):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return min(taken) * 1e3


def plain(encoding: HashEncoding, unit: Tensor) -> Tensor:
    """The same features [2 L, N] by indexing and autograd."""
    table, features = encoding.table.view(-1, 2), []
    for level in encoding.levels:
        place = unit * level.scale + 0.5
        x, y, z = (place - place.floor())
        index, _ = level.corners(unit)
        weights = torch.stack([a * b * c for a in (1 - x, x) for b in (1 - y, y) for c in (1 - z, z)])
        corners = table[level.offset + index.long()].view(8, -1, 2)
        features.append((weights[:, :, None] * corners).sum(0).T)
    return torch.cat(features)


def main() -> None:
    torch.set_num_threads(1)
    for title, (keys, samples, batch, size) in SCALES.items():
        scene = Scene(HashGrid(RNG, **keys), Diffuse(), NeuralEnvironment(RNG), Volume(samples=samples))
        views = Random(batch=batch, size=size)(0, RNG)
        shape, encoding = scene.shape, scene.shape.encoding
        x = scene.render(views, 0, RNG).samples.positions
        unit = (x.T / (2 * scene.shape.radius) + 0.5).contiguous()
        code = encoding(unit).detach().requires_grad_()

        def backward(forward: Callable[[], Tensor]) -> Callable[[], None]:
            return lambda: forward().sum().backward()

        def normals() -> Tensor:
            return shape.evaluate(x, True).normals

        def step(*needs: str) -> Tensor:
            return scene.render(views, 0, RNG, needs).rgb

        encode = milliseconds(backward(lambda: encoding(unit)))
        naive = milliseconds(backward(lambda: plain(encoding, unit)))
        print(f"{title}: {len(x)} samples")
        for name, value in (("encoding, forward", milliseconds(lambda: encoding.read(unit, False))),
                            ("encoding with derivatives, forward", milliseconds(lambda: encoding.read(unit, True))),
                            ("encoding, forward and backward", encode),
                            (f"  by plain autograd ({naive / encode:.1f} x)", naive),
                            ("two networks, forward and backward", milliseconds(
                                backward(lambda: shape.density_network(code) + shape.feature_network(code)))),
                            ("normals, forward and backward", milliseconds(backward(normals))),
                            ("image, forward", milliseconds(lambda: step())),
                            ("image, forward and backward", milliseconds(backward(lambda: step()))),
                            ("  with normals", milliseconds(backward(lambda: step("normals"))))):
            print(f"  {name:40s} {value:9.1f} ms")


if __name__ == "__main__":
    main()
