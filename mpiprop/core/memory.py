"""Working on long vectors at the speed of memory."""

import ctypes
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 18  # numbers; a few arrays of 1 MiB fit a CPU's second-level cache

LARGE = 1 << 20  # numbers; smaller vectors are left to the C library
SIZES = 4  # lengths of large vectors whose free blocks are kept
ALIGNMENT = 64  # bytes, of torch's tensors on CPUs: results of some kernels depend on it to the last bit

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


_plain_block = ctypes.pythonapi.PyByteArray_FromStringAndSize  # a bytearray that is not filled with zeros first
_plain_block.argtypes, _plain_block.restype = (ctypes.c_char_p, ctypes.c_ssize_t), ctypes.py_object
_free: dict[int, list[bytearray]] = {}  # blocks by their size in bytes


def recycle_large_blocks() -> None:
    """Keep large freed blocks in the process: every step makes vectors of the same few sizes, and fresh pages from the
    kernel cost more than the arithmetic on them (CUDA's caching allocator does the same on devices). A C library without
    mallopt is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def empty(n: int, device: torch.device | str = "cpu") -> Tensor:
    """A vector of n float32 numbers, not initialised.

    On a CPU a large vector takes a block that an earlier one of this size has left, if there is one; its block is free again
    when the last tensor that shares it is gone. The C library would hand parts of free blocks to small objects, after which no
    vector fits any more. (CUDA's caching allocator keeps small and large blocks apart by itself.)
    """
    if n < LARGE or torch.device(device).type != "cpu":
        return torch.empty(n, device=device)
    size = 4 * n + ALIGNMENT
    if size not in _free and len(_free) == SIZES:  # clouds of points grow
        del _free[next(iter(_free))]
    free = _free.setdefault(size, [])
    block = free.pop() if free else _plain_block(None, size)
    lent = memoryview(block)
    weakref.finalize(lent, free.append, block).atexit = False
    numbers = torch.frombuffer(lent, dtype=torch.float32)
    skipped = -numbers.data_ptr() % ALIGNMENT // 4
    return numbers[skipped:skipped + n]


def zeros(n: int, device: torch.device | str = "cpu") -> Tensor:
    """A vector of n float32 zeros, in memory from `empty`."""
    return empty(n, device).zero_()


def copy(vector: Tensor) -> Tensor:
    """A copy of a vector of float32 numbers, in memory from `empty`."""
    return empty(len(vector), vector.device).copy_(vector)


def blocks(start: int, stop: int, device: torch.device) -> Iterator[slice]:
    """Spans that cover start .. stop: short enough on a CPU for what several operations leave to stay in its cache, the
    whole on a GPU, where each operation costs a launch."""
    length = BLOCK if device.type == "cpu" else max(1, stop - start)
    for begin in range(start, stop, length):
        yield slice(begin, min(begin + length, stop))
