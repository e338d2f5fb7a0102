"""Moves flat vectors between a device and MPI: as they are where MPI can read them, through pinned host memory else.

`MPIPROP_CUDA_AWARE`: 0 stages, 1 insists on device memory, auto uses it where the library says that it can. Either way a
real exchange of device memory proves it before the run depends on it.
"""

import ctypes
import os
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from mpiprop.core import memory
from mpiprop.core.errors import UserError
from mpiprop.transport.messages import PAYLOAD

PROOF = 1 << 18  # numbers; large enough for the protocol of long messages


class Wire:
    """Sends and receives the vectors of one rank."""

    def __init__(self, comm: Any, device: torch.device, cuda_aware: bool) -> None:
        self.comm, self.device = comm, device
        self.staged = device.type == "cuda" and not cuda_aware

    def send(self, vector: Tensor, rank: int) -> tuple[Any, object]:
        """Begin to send; the request, and what must stay alive and unchanged until it is done."""
        vector = vector.detach()
        if self.staged:
            vector = torch.empty(vector.shape, pin_memory=True).copy_(vector)
        elif self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # MPI knows nothing of streams
        return self.comm.Isend([self._buffer(vector), MPI.FLOAT], rank, PAYLOAD), vector

    def receive(self, n: int, rank: int) -> tuple[Any, Tensor]:
        """Begin to receive n numbers; the request, and the memory where they will be, which belongs to the caller.

        Freed blocks are used again: by the C library as core.memory sets it, and by CUDA's allocators.
        """
        vector = torch.empty(n, pin_memory=True) if self.staged else memory.empty(n, self.device)
        if self.device.type == "cuda" and not self.staged:
            torch.cuda.current_stream(self.device).synchronize()  # kernels may still read the memory
        return self.comm.Irecv([self._buffer(vector), MPI.FLOAT], rank, PAYLOAD), vector

    def arrived(self, vector: Tensor) -> Tensor:
        """What was received, on the device."""
        return vector.to(self.device) if self.staged else vector

    def _buffer(self, vector: Tensor) -> object:
        return vector.numpy() if vector.device.type == "cpu" else vector


def cuda_aware(device: torch.device) -> bool:
    """Whether this rank hands device memory to MPI. Raises UserError where that is asked for and cannot be."""
    wanted = os.environ.get("MPIPROP_CUDA_AWARE", "0")
    if wanted not in ("0", "1", "auto"):
        raise UserError(f"MPIPROP_CUDA_AWARE={wanted}: need 0, 1 or auto")
    if device.type != "cuda" or wanted == "0":
        return False
    if not (able := _told_by_library()) and wanted == "1":
        raise UserError("MPIPROP_CUDA_AWARE=1, but the MPI library says that it does not read device memory: load a CUDA-aware "
                        "one (MPI4PY_LIBMPI), or set MPIPROP_CUDA_AWARE=0 to go through host memory")
    return able


def prove(comm: MPI.Comm, device: torch.device) -> None:
    """Send device memory once round all ranks of `comm`. Raises UserError where something else arrives."""
    mine = torch.arange(PROOF, device=device, dtype=torch.float32) + comm.rank
    theirs = torch.full_like(mine, -1)
    torch.cuda.synchronize(device)
    last = (comm.rank - 1) % comm.size
    comm.Sendrecv([mine, MPI.FLOAT], (comm.rank + 1) % comm.size, PAYLOAD, [theirs, MPI.FLOAT], last, PAYLOAD)
    if not torch.equal(theirs, mine - comm.rank + last):
        raise UserError(f"device memory sent from rank {last} to rank {comm.rank} arrives damaged: set MPIPROP_CUDA_AWARE=0 to "
                        "go through host memory, and have the MPI library's CUDA support looked at")


def _told_by_library() -> bool:
    kinds = MPI.COMM_WORLD.Get_info().get("mpi_memory_alloc_kinds") or ""
    if "cuda" in kinds or os.environ.get("MPICH_GPU_SUPPORT_ENABLED") == "1" or os.environ.get("MV2_USE_CUDA") == "1":
        return True
    query = getattr(ctypes.CDLL(MPI.__file__), "MPIX_Query_cuda_support", None)
    return bool(query and query())
