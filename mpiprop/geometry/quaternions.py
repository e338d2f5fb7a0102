"""Rotations as quaternions w x y z.

Letters: N rotations.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def matrices(rotations: Tensor) -> Tensor:
    """Returns the rotation matrices [3 (world), 3 (axis), N] of unit quaternions [N, 4]."""
    w, x, y, z = rotations.unbind(-1)
    return torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]).view(3, 3, -1)


def rotate(rotations: Tensor, vectors: Tensor) -> Tensor:
    """Returns vectors [N, 3] rotated by quaternions [N, 4] of any length."""
    rotations = normalize(rotations, dim=-1)
    w, axis = rotations[:, :1], rotations[:, 1:]
    twice = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * twice + torch.linalg.cross(axis, twice)
