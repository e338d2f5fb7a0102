"""The running variance of a random vector, by a sketch of it: a few numbers stand for many.

A sketch y = S g has K numbers, each a sum of entries of g under random signs. It is linear, so sketches of the parts of a
batch add up, and E |S g|^2 = |g|^2 over the signs. The variance of the sketch is therefore an unbiased estimate of the
variance of g, summed over its entries. Its error falls with K times the number of directions in which g varies.

Letters: D entries of g, K of a sketch, N samples in L noise levels.
"""

from functools import lru_cache

import torch
from torch import Tensor

from mpiprop.core.streams import Streams, uniform

LEVELS = 10  # equal parts of the timesteps of a prior
DECAY = 0.99  # of the running averages, for each step: they reach about 100 steps back


def sketch(g: Tensor, K: int) -> Tensor:
    """Returns the sketches [N, K] of vectors [N, D]. The signs are the same in every run."""
    N, D = g.shape
    rows, rest = divmod(D, K)
    sign = _signs(rows + 1, g.device)
    y = torch.einsum("r,nrk->nk", sign[:rows], g[:, :D - rest].view(N, rows, K)) if rows else g.new_zeros(N, K)
    y[:, :rest] += sign[rows] * g[:, D - rest:]
    return y


def level(t: Tensor, T: int) -> Tensor:
    """Returns the noise level, 0 to LEVELS - 1, of timesteps t out of T."""
    return t * LEVELS // T


def moments(y: Tensor) -> Tensor:
    """Returns 1, |y|^2 and y of each sketch, [N, 2 + K]: what it adds to the averages."""
    return torch.cat([y.new_ones(len(y), 1), y.square().sum(1, keepdim=True), y], 1)


def by_level(values: Tensor, levels: Tensor) -> Tensor:
    """Returns the sums [L, M] of those rows [N, M] that belong to each level; a matrix product, which adds in one order."""
    return torch.nn.functional.one_hot(levels, LEVELS).to(values).T @ values


def averaged(before: Tensor | None, sums: Tensor) -> Tensor:
    """Returns the averages [L, 3 + K] after a step whose moments are `sums` [L, 2 + K]: weights, squared weights, |y|^2 and
    y; float64. L may be 1, where there are no levels."""
    new = torch.cat([sums[:, :1], sums], 1).double()
    if before is None:
        return new
    decay = torch.full((1, new.shape[1]), DECAY, dtype=torch.float64)
    decay[:, 1] = DECAY ** 2
    return decay * before + new


def variances(averages: Tensor) -> list[float | None]:
    """Returns the variance of each level, summed over all entries; None where fewer than two of its samples still count."""
    weight, squares, second = averages[:, :3].unbind(1)
    share = squares / weight.square()  # 1 / effective number of samples
    found = (second / weight - (averages[:, 3:] / weight[:, None]).square().sum(1)) / (1 - share)
    return [float(value) if known else None for value, known in zip(found, (share < 0.5) & (weight > DECAY ** 300))]


@lru_cache(maxsize=8)
def _signs(n: int, device: torch.device) -> Tensor:
    return (2.0 * (uniform(Streams(0, 0)("variance.signs"), n) < 0.5) - 1).to(device)
