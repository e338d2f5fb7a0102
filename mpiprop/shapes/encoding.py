"""Multiresolution hash encoding of points (Mueller et al. 2022, section 3), index for index that of tiny-cuda-nn.

Letters: N points, L levels of 2 features each, E entries in all levels together. The table's two features travel as one
complex number, so that a corner costs one 1-D gather forward and one 1-D scatter backward; arithmetic sees real pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.errors import UserError
from ..core.steps import Streams
from .networks import initialised

PRIMES = (1, 2654435761 - 2**32, 805459861)  # as wrapping int32
CHUNK = 1 << 14  # points whose temporaries fit the caches


@dataclass(frozen=True)
class Level:
    """One grid of the pyramid."""

    scale: float
    resolution: int
    offset: int  # of its first entry
    entries: int

    @property
    def hashed(self) -> bool:
        return self.resolution ** 3 > self.entries

    def corners(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Entries [8 N] (int32, x slowest, then y, z, points) of the corners around `unit` [3, N] in [0, 1], and the
        places [3, 2 N] of the points between them, each twice in a row."""
        place = unit * self.scale + 0.5
        low = place.floor()
        x, y, z = torch.stack([cell := low.int(), cell + 1]).unbind(1)
        if self.hashed:
            index = (x[:, None, None] ^ ((y * PRIMES[1])[:, None] ^ z * PRIMES[2])) & (self.entries - 1)
        else:
            index = x[:, None, None] + ((y * self.resolution)[:, None] + z * self.resolution ** 2)
            index -= (index >= self.entries).int() * self.entries
        return index.reshape(-1), (place - low).repeat_interleave(2, dim=1)


def pyramid(levels: int, log2_table: int, base_resolution: int, growth: float) -> tuple[Level, ...]:
    """The levels of tiny-cuda-nn's HashGrid: 16 x growth^l cells a side, at most 2^log2_table entries each."""
    found: list[Level] = []
    for level in range(levels):
        scale = base_resolution * growth ** level - 1
        resolution = ceil(round(scale, 3)) + 1
        entries = min(ceil(resolution ** 3 / 8) * 8, 1 << log2_table)
        found.append(Level(scale, resolution, found[-1].offset + found[-1].entries if found else 0, entries))
    return tuple(found)


class HashEncoding(nn.Module):
    """Features [N, 2 L] of points in the unit cube, interpolated from one table per level.

    The table is one float32 vector [2 E] in tiny-cuda-nn's order whichever backend reads it.
    """

    def __init__(self, rng: Streams, levels: int, log2_table: int, base_resolution: int, growth: float,
                 backend: Literal["torch", "tcnn"]) -> None:
        super().__init__()
        self.levels = pyramid(levels, log2_table, base_resolution, growth)
        self.channels = 2 * levels
        self.active = levels
        entries = self.levels[-1].offset + self.levels[-1].entries
        self.table = initialised(rng, "table", 2 * entries, bound=1e-4)
        self._tcnn: list[nn.Module] = []  # in a list, lest its parameters be registered beside ours
        if backend == "tcnn":
            self._tcnn.append(_tiny_cuda_nn(levels, log2_table, base_resolution, growth))
            self._tcnn[0].params = self.table

    def forward(self, unit: Tensor) -> Tensor:
        """Features [N, 2 L] of points [N, 3]; differentiable in the table. Levels from `active` on are zero."""
        if self._tcnn:
            return self._masked(self._tcnn[0](unit))
        return _Interpolate.apply(self.table, unit.detach(), self.levels, self.active, False)[0]

    def vjp(self, unit: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Features [N, 2 L] of points [N, 3], and the map from weights [N, 2 L] to the gradient [N, 3] in the points of
        the features so weighted. Both are differentiable in table and weights, not in the points."""
        if self._tcnn:
            with torch.enable_grad():
                at = unit.detach().requires_grad_()
                features = self._masked(self._tcnn[0](at))
            return features, lambda weights: torch.autograd.grad(
                features, at, weights, create_graph=torch.is_grad_enabled(), retain_graph=True)[0]
        features, jacobian = _Interpolate.apply(self.table, unit.detach(), self.levels, self.active, True)
        return features, lambda weights: torch.einsum("knc,nc->nk", jacobian, weights)

    def _masked(self, features: Tensor) -> Tensor:
        return features * (torch.arange(self.channels, device=features.device) < 2 * self.active)


class _Interpolate(torch.autograd.Function):
    """Features [N, 2 L] and, if asked for, their derivatives [3, N, 2 L] along the axes; gradient to the table only."""

    @staticmethod
    def forward(ctx, table: Tensor, unit: Tensor, levels: tuple[Level, ...], active: int,
                derivatives: bool) -> tuple[Tensor, Tensor | None]:
        unit = unit.T.contiguous()
        ctx.save_for_backward(unit)
        ctx.set_materialize_grads(False)
        ctx.levels, ctx.active, ctx.length = levels, active, len(table)
        table = torch.view_as_complex(table.view(-1, 2))
        N = unit.shape[1]
        out = table.new_zeros(4 if derivatives else 1, N, len(levels))
        for column, level, span in _chunks(levels[:active], N):
            index, (fx, fy, fz) = level.corners(unit[:, span])
            values = table[level.offset:level.offset + level.entries].index_select(0, index)
            c = torch.view_as_real(values).view(2, 2, 2, -1)
            c_x = torch.lerp(c[0], c[1], fx)
            c_xy = torch.lerp(c_x[0], c_x[1], fy)
            out[0, span, column] = _pairs(torch.lerp(c_xy[0], c_xy[1], fz))
            if derivatives:
                d_x = c[1] - c[0]
                d_x = torch.lerp(d_x[0], d_x[1], fy)
                d_y = c_x[1] - c_x[0]
                out[1, span, column] = _pairs(torch.lerp(d_x[0], d_x[1], fz).mul_(level.scale))
                out[2, span, column] = _pairs(torch.lerp(d_y[0], d_y[1], fz).mul_(level.scale))
                out[3, span, column] = _pairs((c_xy[1] - c_xy[0]).mul_(level.scale))
        out = torch.view_as_real(out).flatten(2)
        return out[0], out[1:] if derivatives else None

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, grad_d: Tensor | None) -> tuple[Tensor, None, None, None, None]:
        unit, = ctx.saved_tensors
        N = unit.shape[1]
        out = torch.zeros(ctx.length // 2, dtype=torch.complex64, device=unit.device)
        grad = _columns(unit.new_zeros(N, 2 * len(ctx.levels)) if grad is None else grad)
        grad_d = None if grad_d is None else _columns(grad_d)
        for column, level, span in _chunks(ctx.levels[:ctx.active], N):
            index, (fx, fy, fz) = level.corners(unit[:, span])
            g = torch.view_as_real(grad[span, column]).reshape(-1)
            if grad_d is None:
                g = _split(_split(_split(g, fz), fy), fx)
            else:
                d_x, d_y, d_z = torch.view_as_real(grad_d[:, span, column]).reshape(3, -1) * level.scale
                g = _split(_split(_split(g, fz, d_z), fy, _split(d_y, fz)), fx, _split(_split(d_x, fz), fy))
            out[level.offset:level.offset + level.entries].index_add_(0, index, _pairs(g.view(-1)))
        return torch.view_as_real(out).view(-1), None, None, None, None


def _chunks(levels: tuple[Level, ...], N: int) -> Iterator[tuple[int, Level, slice]]:
    for column, level in enumerate(levels):
        for start in range(0, N, CHUNK):
            yield column, level, slice(start, start + CHUNK)


def _pairs(interleaved: Tensor) -> Tensor:
    return torch.view_as_complex(interleaved.view(-1, 2))


def _columns(grad: Tensor) -> Tensor:
    return torch.view_as_complex(grad.contiguous().unflatten(-1, (-1, 2)))


def _split(grad: Tensor, place: Tensor, difference: Tensor | None = None) -> Tensor:
    """Transpose of lerp (and of the difference) of two corners: the shares [2, ...] of the low and the high one."""
    high = grad * place if difference is None else torch.addcmul(difference, grad, place)
    return torch.stack([grad - high, high])


def _tiny_cuda_nn(levels: int, log2_table: int, base_resolution: int, growth: float) -> nn.Module:
    try:
        import tinycudann
    except ImportError as error:
        raise UserError(f"backend: 'tcnn' needs tiny-cuda-nn and a CUDA device ({error}); "
                        "install it from its repository, or set backend: torch") from error
    config = {"otype": "HashGrid", "n_levels": levels, "n_features_per_level": 2, "log2_hashmap_size": log2_table,
              "base_resolution": base_resolution, "per_level_scale": growth}
    return tinycudann.Encoding(3, config, dtype=torch.float32)
