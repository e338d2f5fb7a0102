"""Keeps large freed blocks in the process: every step makes vectors of the same few sizes, and getting fresh pages for
them from the kernel costs more than the arithmetic on them (CUDA's caching allocator does the same on devices)."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def recycle_large_blocks() -> None:
    """Make glibc's allocator reuse freed blocks of any size; a C library without mallopt is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
