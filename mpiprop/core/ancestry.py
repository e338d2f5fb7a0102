"""Who a point of a cloud is, and whom it descends from: what lets numbers of one cloud be read for another.

An id is the same for the same birth wherever it is computed: of whom, after which step, as which child. Letters: N points,
A ancestors of whom a point knows the ids, the newest first, itself among them.
"""

import torch
from torch import Tensor

GENERATIONS = 8  # A at most: clouds compared lie a window apart, and no window crosses so many births of one line
MIXERS = (-0x61c8864680b583eb, -0x40a7b892e31b1a47, -0x6b2fb644ecceee15)  # of splitmix64 (Steele et al. 2014)


def roots(N: int) -> Tensor:
    """The ids [N, 1] of points without ancestors."""
    return torch.arange(N)[:, None]


def born(parents: Tensor, tau: int, child: int) -> Tensor:
    """The ids [n, A] of one child, number `child`, of each parent [n, A], born after step tau."""
    step = torch.full((1,), tau + 1, device=parents.device) * MIXERS[0]  # wraps round, as integers of 64 bits do
    key = _mixed(_mixed(parents[:, :1] + step) + child)
    return torch.cat([key, parents[:, :GENERATIONS - 1]], 1)


def joined(parts: list[Tensor]) -> Tensor:
    """Ids of different A as one, filled up with -1."""
    A = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, A - part.shape[1]), value=-1) for part in parts])


def rows(wanted: Tensor, there: Tensor) -> Tensor:
    """For each point of `wanted` [N, A] the row of `there` [M, A'] that tells most of it [N]: its own, or else its nearest
    ancestor's, or else that of the first point that descends from either; -1 where they are not related."""
    found = wanted.new_full((len(wanted),), -1)
    for b in range(there.shape[1]):
        ids, at = there[:, b].sort(stable=True)
        for a in range(wanted.shape[1]):
            left = ((found < 0) & (wanted[:, a] >= 0)).nonzero()[:, 0]
            if not len(left) or not len(ids):
                continue
            place = torch.searchsorted(ids, wanted[left, a]).clamp_(max=len(ids) - 1)
            same = ids[place] == wanted[left, a]
            found[left[same]] = at[place[same]]
    return found


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int64 that leaves nothing of the order [n, 1], its sign cut off: ids are never negative."""
    for shift, mixer in zip((30, 27), MIXERS[1:]):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * mixer
    return (x ^ (x >> 31 & (1 << 33) - 1)) & 0x7fff_ffff_ffff_ffff
