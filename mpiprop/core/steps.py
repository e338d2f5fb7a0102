"""Pure functions of the step tau: schedules and random streams.

Every random draw of the program comes from a stream keyed by (seed, tau, name); there is no generator state to save, to
restore or to diverge between ranks, and a step evaluated twice sees the same noise (DreamPropeller, appendix C). Draws are
made on the CPU and moved, so they are the same numbers on every device. The key is hashed: neighbouring seeds share nothing.

Schedules are also what configurations are read with, so torch is loaded by the first draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import TYPE_CHECKING

from mpiprop.core.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor

Schedule = float | Sequence[Sequence[float]]
"""A number, or knots [[step, value], ...]: linear between them, constant outside."""


def at(schedule: Schedule, tau: int) -> float:
    """The schedule's value at step tau."""
    if not isinstance(schedule, Sequence):
        return float(schedule)
    knots = [(float(step), float(value)) for step, value in schedule]
    if tau <= knots[0][0]:
        return knots[0][1]
    for (s0, v0), (s1, v1) in zip(knots, knots[1:]):
        if tau < s1:
            return v0 + (v1 - v0) * (tau - s0) / (s1 - s0)
    return knots[-1][1]


def at_log(schedule: Schedule, tau: int) -> float:
    """The value at step tau of a schedule of numbers above 0 whose logarithm is linear between knots.

    Raises UserError where a number is not above 0.
    """
    if not isinstance(schedule, Sequence):
        return float(schedule)
    if any(value <= 0 for _, value in schedule):
        raise UserError(f"between: log needs values above 0 in the schedule {[list(knot) for knot in schedule]}")
    return exp(at([(step, log(value)) for step, value in schedule], tau))


@dataclass(frozen=True)
class Streams:
    """The random streams of one step: `rng("noise")` is a fresh generator, the same one whoever asks and whenever.

    Where only some views of a batch are evaluated here, `rows` gives them the draws that they have in the whole batch.
    """

    seed: int
    tau: int
    prefix: str = ""
    views: range = range(1)  # those evaluated here ...
    batch: int = 1  # ... of so many

    def __call__(self, name: str) -> Generator:
        from torch import Generator

        key = f"{self.seed}/{self.tau}/{self.prefix}{name}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def of(self, name: str) -> "Streams":
        """The streams of a part of the step, apart from those of every other part."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    def part(self, views: range, batch: int) -> "Streams":
        """The same streams for some views of a batch."""
        return replace(self, views=views, batch=batch)

    def rows(self, name: str, draw: Callable[..., Tensor], n: int, *shape: int) -> Tensor:
        """Of `draw(rng(name), N, *shape)` for the N rows of the whole batch, the n that belong to the views evaluated here
        (as many rows for each view)."""
        each = n // len(self.views)
        return draw(self(name), each * self.batch, *shape)[each * self.views.start:each * self.views.stop]


def uniform(rng: Generator, *shape: int, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """Uniform draws in [lo, hi) of the given shape, on the CPU."""
    import torch

    return torch.rand(shape, generator=rng) * (hi - lo) + lo


def normal(rng: Generator, *shape: int) -> Tensor:
    """Standard normal draws of the given shape, on the CPU."""
    import torch

    return torch.randn(shape, generator=rng)
