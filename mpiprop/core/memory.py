"""Working on long vectors at the speed of memory."""

import ctypes
from collections.abc import Iterator

import torch

BLOCK = 1 << 18  # numbers; a few arrays of 1 MiB fit a CPU's second-level cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def recycle_large_blocks() -> None:
    """Keep large freed blocks in the process: every step makes vectors of the same few sizes, and fresh pages from the
    kernel cost more than the arithmetic on them (CUDA's caching allocator does the same on devices). A C library without
    mallopt is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def blocks(start: int, stop: int, device: torch.device) -> Iterator[slice]:
    """Spans that cover start .. stop: short enough on a CPU for what several operations leave to stay in its cache, the
    whole on a GPU, where each operation costs a launch."""
    length = BLOCK if device.type == "cpu" else max(1, stop - start)
    for begin in range(start, stop, length):
        yield slice(begin, min(begin + length, stop))
