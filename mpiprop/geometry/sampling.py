"""Linear interpolation in regular grids of two or three axes, by operations whose gradients are the same every time on a GPU,
too (those of torch's grid_sample and interpolate are not).

Letters: C channels, N points.
"""

from itertools import product

import torch
from torch import Tensor


def sample(grid: Tensor, x: Tensor) -> Tensor:
    """Returns values [C, N] of a grid [C, *sizes] at points [N, axes], -1 and 1 the outer borders of the first and the last
    cell of an axis; zero outside. Differentiable in the grid."""
    sizes = torch.tensor(grid.shape[1:], device=x.device)
    place = (x + 1) * sizes / 2 - 0.5
    low = place.floor()
    share, low = place - low, low.long()
    table, found = grid.flatten(1).T.contiguous(), torch.zeros((), device=x.device)
    for corner in product((0, 1), repeat=len(sizes)):
        ahead = torch.tensor(corner, device=x.device)
        cell = low + ahead
        weight = torch.where(ahead > 0, share, 1 - share).prod(1) * ((cell >= 0) & (cell < sizes)).all(1)
        index = torch.zeros_like(cell[:, 0])
        for axis, size in enumerate(grid.shape[1:]):
            index = index * size + cell[:, axis].clamp(0, size - 1)
        found = found + table.index_select(0, index) * weight[:, None]
    return found.T


def doubled(grid: Tensor) -> Tensor:
    """Returns a grid [C, X, Y, Z] with twice as many points along each axis, the first and the last in the same places
    (align_corners)."""
    x, y, z = (_between(size, grid) for size in grid.shape[1:])
    return torch.einsum("cxyz,ax,by,dz->cabd", grid, x, y, z)


def _between(n: int, like: Tensor) -> Tensor:
    """The weights [2 n, n] of n points in 2 n points over the same length."""
    place = torch.arange(2 * n, dtype=like.dtype, device=like.device) * ((n - 1) / (2 * n - 1))
    return (1 - (place[:, None] - torch.arange(n, device=like.device)).abs()).clamp(min=0)
