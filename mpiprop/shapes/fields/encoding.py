"""Multiresolution hash encoding of points (Mueller et al. 2022, section 3), index for index that of tiny-cuda-nn.

Letters: N points, L levels of 2 features each, E entries in all levels together. The table's two features travel as one
complex number, so that a corner costs one 1-D gather forward and one 1-D scatter backward; arithmetic sees real pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mpiprop.core.errors import UserError, positive
from mpiprop.core.streams import Streams
from mpiprop.shapes.fields.networks import initialised

PRIMES = (2654435761 - 2**32, 805459861)  # of y and z, as wrapping int32; that of x is 1
FINEST = 24  # binary logarithm of the most cells a side: coordinates in float32 tell no more apart
CHUNK = 1 << 13  # points whose temporaries fit a CPU's caches


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
        place -= low
        x, y, z = torch.stack([cell := low.int(), cell + 1]).unbind(1)
        if self.hashed:
            index = x[:, None, None] ^ ((y * PRIMES[0])[:, None] ^ z * PRIMES[1])
            index &= self.entries - 1
        else:
            index = x[:, None, None] + ((y * self.resolution)[:, None] + z * self.resolution ** 2)
            index -= self.entries  # modulo the number of entries, twice as fast as %: negative ones get it back
            index += (index >> 31) & self.entries
        return index.view(-1), torch.view_as_real(torch.complex(place, place)).view(3, -1)


def pyramid(levels: int, log2_table: int, base_resolution: int, growth: float) -> tuple[Level, ...]:
    """The levels of tiny-cuda-nn's HashGrid: base_resolution growth^l cells a side, at most 2^log2_table entries."""
    found: list[Level] = []
    for level in range(levels):
        scale = base_resolution * growth ** level - 1
        resolution = ceil(round(scale, 3)) + 1  # a growth given in decimals may miss a whole number by its last ones
        entries = min(ceil(resolution ** 3 / 8) * 8, 1 << log2_table)
        found.append(Level(scale, resolution, found[-1].offset + found[-1].entries if found else 0, entries))
    return tuple(found)


class HashEncoding(nn.Module):
    """Features [2 L, N] of points in the unit cube, interpolated from one table per level.

    The table is one float32 vector [2 E] in tiny-cuda-nn's order whichever backend reads it.
    """

    def __init__(self, rng: Streams, levels: int, log2_table: int, base_resolution: int, growth: float,
                 backend: Literal["auto", "torch", "tcnn"]) -> None:
        super().__init__()
        positive(levels=levels, log2_table=log2_table, base_resolution=base_resolution)
        if growth < 1:
            raise UserError(f"growth: needs 1 or more, got {growth:g}")
        if log2(base_resolution) + (levels - 1) * log2(growth) > FINEST:
            raise UserError(f"growth: {growth:g} gives the finest of {levels} grids more than 2^{FINEST} cells a side; lower "
                            "growth, levels or base_resolution")
        self.levels = pyramid(levels, log2_table, base_resolution, growth)
        self.channels = 2 * levels
        self.active = levels
        entries = self.levels[-1].offset + self.levels[-1].entries
        self.table = initialised(rng, "table", 2 * entries, bound=1e-4)
        self._tcnn: list[nn.Module] = []  # in a list, lest its parameters be registered beside ours
        if backend == "tcnn":
            self._tcnn.append(_tiny_cuda_nn(levels, log2_table, base_resolution, growth))
            if (theirs := len(self._tcnn[0].params)) != len(self.table):
                raise UserError(f"backend: tiny-cuda-nn makes {theirs:,} numbers of this grid, not {len(self.table):,}: it "
                                "rounds its growth otherwise; set backend: torch")
            self._tcnn[0].params = self.table

    def forward(self, unit: Float[Tensor, "3 N"]) -> Float[Tensor, "{self.channels} N"]:
        """Features of points; differentiable in the table. Levels from `active` on are zero."""
        return self.attach(unit, self.read(unit, False))[0]

    @torch.no_grad()
    def read(self, unit: Tensor, derivatives: bool) -> Tensor:
        """The numbers alone, for `attach`: features of points [3, N], then their derivatives along the axes if asked
        for, [1 or 4, 2 L, N]."""
        if self._on_tcnn(unit):
            return self._masked(self._tcnn[0](unit.T))[None]
        return _interpolate(self.table, unit, self.levels[:self.active], len(self.levels), derivatives)

    def attach(self, unit: Tensor, read: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Features [2 L, N] of points [3, N], given what `read` said of them, and, where derivatives were read, the map
        from weights [2 L, N] to the gradient [3, N] in the points of the features so weighted. Both are
        differentiable in table and weights, not in the points."""
        if self._on_tcnn(unit):
            with torch.enable_grad():
                at = unit.detach().requires_grad_()
                features = self._masked(self._tcnn[0](at.T))
            return features, lambda weights: torch.autograd.grad(
                features, at, weights, create_graph=torch.is_grad_enabled(), retain_graph=True)[0]
        features, jacobian = _Attach.apply(self.table, unit, read, self.levels[:self.active])
        return features, lambda weights: (jacobian * weights).sum(1)

    def _on_tcnn(self, unit: Tensor) -> bool:
        return bool(self._tcnn) and unit.is_cuda and unit.numel() > 0

    def _masked(self, features: Tensor) -> Tensor:
        return features.T * (torch.arange(self.channels, device=features.device) < 2 * self.active)[:, None]


def _interpolate(table: Tensor, unit: Tensor, levels: tuple[Level, ...], rows: int, derivatives: bool) -> Tensor:
    """Features [1, 2 rows, N], or with their derivatives along the axes [4, 2 rows, N]; zero without a level."""
    unit = unit.contiguous()
    if table.storage_offset() % 2:  # theta has it at an odd place, where no complex number can be
        table = table.clone()
    table = torch.view_as_complex(table.view(-1, 2))
    out = unit.new_empty(4 if derivatives else 1, rows, 2, unit.shape[1])
    out[:, len(levels):] = 0
    for span, row, level in _parts(levels, unit):
        index, (fx, fy, fz) = level.corners(unit[:, span])
        values = table[level.offset:level.offset + level.entries].index_select(0, index)
        c = torch.view_as_real(values).view(2, 2, 2, -1)
        c_x = torch.lerp(c[0], c[1], fx)
        c_xy = torch.lerp(c_x[0], c_x[1], fy)
        out[0, row, :, span] = _planes(torch.lerp(c_xy[0], c_xy[1], fz))
        if derivatives:
            d_x = c[1] - c[0]
            d_x = torch.lerp(d_x[0], d_x[1], fy)
            d_y = c_x[1] - c_x[0]
            out[1, row, :, span] = _planes(torch.lerp(d_x[0], d_x[1], fz).mul_(level.scale))
            out[2, row, :, span] = _planes(torch.lerp(d_y[0], d_y[1], fz).mul_(level.scale))
            out[3, row, :, span] = _planes((c_xy[1] - c_xy[0]).mul_(level.scale))
    return out.flatten(1, 2)


class _Attach(torch.autograd.Function):
    """What `_interpolate` computed, with its gradient to the table."""

    @staticmethod
    def forward(ctx, table: Tensor, unit: Tensor, read: Tensor, levels: tuple[Level, ...]) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(unit)
        ctx.set_materialize_grads(False)
        ctx.levels, ctx.length = levels, len(table)
        return read[0], read[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, grad_d: Tensor | None) -> tuple[Tensor, None, None, None]:
        unit = ctx.saved_tensors[0].contiguous()
        out = torch.zeros(ctx.length // 2, dtype=torch.complex64, device=unit.device)
        for span, row, level in _parts(ctx.levels, unit):
            index, (fx, fy, fz) = level.corners(unit[:, span])
            pair = slice(2 * row, 2 * row + 2)
            g = torch.zeros_like(fx) if grad is None else _interleaved(grad[pair, span])
            if grad_d is None:
                g = _split(_split(_split(g, fz), fy), fx)
            else:
                d_x, d_y, d_z = (_interleaved(d).mul_(level.scale) for d in grad_d[:, pair, span])
                g = _split(_split(_split(g, fz, d_z), fy, _split(d_y, fz)), fx, _split(_split(d_x, fz), fy))
            g = torch.view_as_complex(g.view(-1, 2))
            out[level.offset:level.offset + level.entries].index_add_(0, index, g)
        return torch.view_as_real(out).view(-1), None, None, None


def _parts(levels: tuple[Level, ...], unit: Tensor) -> Iterator[tuple[slice, int, Level]]:
    N = unit.shape[1]
    chunk = max(N, 1) if unit.is_cuda else CHUNK
    for start in range(0, N, chunk):
        for row, level in enumerate(levels):
            yield slice(start, start + chunk), row, level


def _planes(interleaved: Tensor) -> Tensor:
    return interleaved.view(-1, 2).T


def _interleaved(planes: Tensor) -> Tensor:
    return planes.T.reshape(-1)


def _split(grad: Tensor, place: Tensor, difference: Tensor | None = None) -> Tensor:
    """Transpose of lerp (and of the difference) of two corners: the shares [2, ...] of the low and the high one."""
    out = grad.new_empty(2, *grad.shape)
    low, high = out
    torch.mul(grad, place, out=high)
    if difference is not None:
        high += difference
    torch.sub(grad, high, out=low)
    return out


def _tiny_cuda_nn(levels: int, log2_table: int, base_resolution: int, growth: float) -> nn.Module:
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # an EnvironmentError where it was built for another device
        raise UserError(f"backend: 'tcnn' needs tiny-cuda-nn and a CUDA device ({error}); "
                        "install it from its repository, or set backend: torch") from error
    config = {"otype": "HashGrid", "n_levels": levels, "n_features_per_level": 2, "log2_hashmap_size": log2_table,
              "base_resolution": base_resolution, "per_level_scale": growth}
    return tinycudann.Encoding(3, config, dtype=torch.float32)
