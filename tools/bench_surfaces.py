"""What surfaces cost: seconds of one core for marching tetrahedra, losses, distances and each stage of the demos; how well
marching tetrahedra reproduce a mesh.

    python -m tools.bench_surfaces [--mesh blub.obj] [--stages] [--steps 3]

Figures are CPU time of one thread, the least of several runs. `--stages` times evaluations of the stages of demo/magic3d,
demo/textmesh and demo/prolificdreamer as they begin (a mesh as its lattice's first sphere). `--mesh` prints the Chamfer
distance (the mean over samples of both surfaces of the distance to the other's samples) of a closed mesh whose longest side
is 1 from its tetrahedral surface, less that of two sets of samples of the mesh itself.
"""

import argparse
import time

import torch
from torch import Tensor

from mpiprop.config import loader
from mpiprop.core.streams import Streams, normal
from mpiprop.guidance.surface_losses import laplacian, normal_consistency
from mpiprop.run.stage import Stage
from mpiprop.shapes.surfaces.dmtet import DMTet
from mpiprop.shapes.surfaces.tetrahedra import lattice, march
from mpiprop.geometry.triangles import load, signed_distance
from tools.bench_render import milliseconds

RNG = Streams(0, 0)
TEXTURE = dict(levels=1, log2_table=4, base_resolution=2)
RESOLUTIONS = (64, 128)
DEMOS = ("demo/magic3d", "demo/textmesh", "demo/prolificdreamer")
SAMPLES = 30_000


def parts() -> None:
    """Prints what the parts of a surface cost."""
    for resolution in RESOLUTIONS:
        shape = DMTet(RNG, radius=1.0, resolution=resolution, **TEXTURE)
        shape.deformation.data.copy_(normal(RNG("deformation"), *shape.deformation.shape))
        vertices, faces = (tensor.detach() for tensor in shape.surface())
        inside = (shape.sdf <= 0) & ~shape.border
        leaf = vertices.clone().requires_grad_()
        x = vertices[::len(vertices) // 1000] * 1.3
        print(f"resolution {resolution}: {len(inside):,} vertices and {shape.tetrahedra.shape[1]:,} tetrahedra; surface of "
              f"{len(vertices):,} vertices and {len(faces):,} faces")

        def backward(loss: Tensor) -> None:
            loss.backward()

        for name, value in (
                ("lattice, once", milliseconds(lambda: lattice.__wrapped__(resolution), 3)),
                ("marching alone", milliseconds(lambda: march(shape.tetrahedra, inside))),
                ("surface, forward", milliseconds(shape.surface)),
                ("surface, forward and backward", milliseconds(lambda: backward(shape.surface()[0].sum()))),
                ("normal consistency, forward and backward", milliseconds(lambda: backward(normal_consistency(leaf, faces)))),
                ("Laplacian, forward and backward", milliseconds(lambda: backward(laplacian(leaf, faces)))),
                (f"signed distance of {len(x):,} points", milliseconds(lambda: signed_distance(vertices, faces, x), 2))):
            print(f"  {name:42s} {value:9.1f} ms")


def stages(steps: int) -> None:
    """Prints seconds an optimiser step of each stage of the demos: an evaluation, and what rank 0 does."""
    for name in DEMOS:
        run = loader.load(name)
        for index in range(len(run.stages)):
            stage = Stage(run, index, torch.device("cpu"))
            unit, rollout, taken = stage.unit(stage.embeddings()), stage.rollout(), []
            x = rollout.start(stage.scene.theta())
            for _ in range(steps + 1):
                start = time.thread_time()
                drift = unit(x.theta, x.tau)
                middle = time.thread_time()
                x = rollout(drift, x)
                taken.append((middle - start, time.thread_time() - middle))
            evaluation, own = (min(column) for column in zip(*taken[1:]))
            print(f"{name}, {stage.name}: D {stage.scene.layout.D:,}, an evaluation {evaluation:.3f} s, rank 0 {own:.4f} s",
                  flush=True)


def reproduction(path: str) -> None:
    """Prints the Chamfer distance of a mesh file from its tetrahedral surface."""
    import trimesh
    from scipy.spatial import cKDTree

    def trees(vertices: Tensor, faces: Tensor, *seeds: int) -> list[cKDTree]:
        mesh = trimesh.Trimesh(vertices.detach().numpy(), faces.numpy(), process=False)
        return [cKDTree(trimesh.sample.sample_surface(mesh, SAMPLES, seed=seed)[0]) for seed in seeds]

    def chamfer(a: cKDTree, b: cKDTree) -> float:
        return (a.query(b.data)[0].mean() + b.query(a.data)[0].mean()) / 2

    first, second = trees(*load(path, 0.5), 0, 1)
    floor = chamfer(first, second)
    for resolution in RESOLUTIONS:
        surface = DMTet(RNG, radius=1.0, resolution=resolution, fit=path, textured=False).surface()
        (found,) = trees(*surface, 2)
        print(f"{path} at resolution {resolution}: {len(surface[1]):,} faces, Chamfer distance "
              f"{chamfer(first, found) - floor:.1e} of its longest side (two sets of {SAMPLES:,} of its samples: {floor:.1e})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", help="a closed mesh to reproduce")
    parser.add_argument("--stages", action="store_true", help="time the demos' stages")
    parser.add_argument("--steps", type=int, default=3, help="of each stage")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts()
    if args.stages:
        stages(args.steps)
    if args.mesh:
        reproduction(args.mesh)


if __name__ == "__main__":
    main()
