"""Random streams of one step: every draw of the program is a pure function of (seed, tau, name).

There is no generator state to save, to restore or to diverge between ranks, and a step that is evaluated twice sees the same
noise (DreamPropeller, appendix C). Draws are made on the CPU and then moved, so that they are the same on every device. The
key is hashed: neighbouring seeds share nothing. torch is loaded by the first draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


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
