"""Real spherical harmonics, in the order and with the signs of tiny-cuda-nn and of 3D Gaussian splatting."""

import torch
from torch import Tensor

C0 = 0.28209479177387814  # the constant one: 1 / sqrt(4 pi)


def harmonics(directions: Tensor, K: int = 9) -> Tensor:
    """The first K = 1, 4, 9 or 16 harmonics [K, N], of degree 0 to 3, at unit directions [N, 3]."""
    x, y, z = directions.unbind(-1)
    found = [torch.full_like(x, C0)]
    if K > 1:
        found += [-0.48860251190291987 * y, 0.48860251190291987 * z, -0.48860251190291987 * x]
    if K > 4:
        found += [1.0925484305920792 * x * y, -1.0925484305920792 * y * z,
                  0.94617469575755997 * z * z - 0.31539156525251999,
                  -1.0925484305920792 * x * z, 0.54627421529603959 * (x * x - y * y)]
    if K > 9:
        found += [-0.59004358992664352 * y * (3 * x * x - y * y), 2.8906114426405538 * x * y * z,
                  -0.45704579946446572 * y * (5 * z * z - 1), 0.37317633259011546 * z * (5 * z * z - 3),
                  -0.45704579946446572 * x * (5 * z * z - 1), 1.4453057213202769 * z * (x * x - y * y),
                  -0.59004358992664352 * x * (x * x - 3 * y * y)]
    return torch.stack(found)
