"""Sums whose rounding is the same every time, on a GPU too."""

import torch
from torch import Tensor

BLOCK = 128  # numbers that one row of a matrix product adds up


def cumulative(values: Tensor) -> Tensor:
    """The sums [M] of the floating-point numbers [M] up to each, itself included.

    Where deterministic algorithms are asked for, as runs on a GPU do, torch.cumsum refuses CUDA tensors or, depending on its
    version, adds in another order each time; products with a triangular matrix of ones take its place there.
    """
    return _blocked(values) if torch.are_deterministic_algorithms_enabled() else values.cumsum(0)


def _blocked(values: Tensor) -> Tensor:
    rows = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    within = rows @ torch.ones(BLOCK, BLOCK, dtype=values.dtype, device=values.device).triu_()
    if len(rows) > 1:
        within[1:] += _blocked(within[:-1, -1].contiguous())[:, None]
    return within.view(-1)[:len(values)]
