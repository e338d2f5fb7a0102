"""Seconds of one core for the surface of a tetrahedral lattice, its losses, and the distance to a mesh.

    python -m tools.bench_surfaces

Figures are milliseconds of CPU time of one thread, the least of several runs.
"""

import torch
from torch import Tensor

from mpiprop.core.steps import Streams, normal
from mpiprop.guidance.surface_losses import face_consistency, laplacian, normal_consistency
from mpiprop.shapes.dmtet import DMTet
from mpiprop.shapes.tetrahedra import lattice, march
from mpiprop.shapes.triangles import signed_distance
from tools.bench_render import milliseconds

RNG = Streams(0, 0)
TEXTURE = dict(levels=1, log2_table=4, base_resolution=2)


def main() -> None:
    torch.set_num_threads(1)
    for resolution in (64, 128):
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
                ("face consistency, forward and backward", milliseconds(lambda: backward(face_consistency(leaf, faces)))),
                ("Laplacian, forward and backward", milliseconds(lambda: backward(laplacian(leaf, faces)))),
                (f"signed distance of {len(x):,} points", milliseconds(lambda: signed_distance(vertices, faces, x), 2))):
            print(f"  {name:42s} {value:9.1f} ms")


if __name__ == "__main__":
    main()
