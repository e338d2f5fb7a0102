"""The ranks of the job, or this process alone: who is root, which device is mine, and doing a thing together.

Without a launcher MPI is not even imported. Under one, `together` is the only collective: every rank does its part, then
all learn whether anybody failed, so that a mistake ends the job everywhere with one line and one exit code.
"""

import os
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.utils import deterministic

from mpiprop.core.errors import FAILED, RunError, UserError, coded, exit_code
from mpiprop.core.launcher import launched, launched_ranks
from mpiprop.transport.base import patiently


@dataclass(frozen=True)
class World:
    comm: Any = None  # MPI.Comm, or None for a process alone
    rank: int = 0
    size: int = 1
    names: tuple[str, ...] = ("rank 0",)  # of all ranks, with their hosts

    @classmethod
    def open(cls) -> "World":
        """All ranks of the launcher. Raises UserError where the launcher and the MPI library do not belong together."""
        if not launched():
            return cls()
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise UserError(f"started by a launcher, but no MPI library loads here: {str(error).splitlines()[0]} "
                            "(set MPI4PY_LIBMPI, or load the site's MPI module)") from None
        try:
            comm = MPI.COMM_WORLD.Dup()
        except MPI.Exception as error:
            raise UserError(f"the ranks do not reach one another: {error}; look at the settings of the MPI library's network "
                            "(OMPI_MCA_btl, OMPI_MCA_pml, UCX_TLS)") from None
        expected = launched_ranks()
        if expected is not None and comm.size != expected:
            raise UserError(f"the launcher started {expected} ranks, the MPI library sees {comm.size}: mpirun and libmpi are "
                            "of different kinds (set MPI4PY_LIBMPI, or use the mpirun of the same installation)")
        world = cls.of(comm)
        sys.excepthook = world._abort
        return world

    @classmethod
    def of(cls, comm: Any) -> "World":
        """The ranks of `comm` (collective)."""
        names = comm.allgather(socket.gethostname())
        return cls(comm, comm.rank, comm.size, tuple(f"rank {rank} on {host}" for rank, host in enumerate(names)))

    @property
    def root(self) -> bool:
        return self.rank == 0

    def device(self, wanted: str) -> torch.device:
        """This rank's device: GPUs are dealt out to the ranks of a host in turn, and compute the same bits every time.

        Raises UserError for a GPU that is not there.
        """
        local = 0
        if self.comm is not None:  # collective, so before anybody returns
            from mpi4py import MPI
            local = self.comm.Split_type(MPI.COMM_TYPE_SHARED).rank
        if wanted == "cpu" or wanted == "auto" and not torch.cuda.is_available():
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise UserError(f"device=cuda: no usable GPU on {socket.gethostname()}; use device=cpu or device=auto")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order each time
        torch.use_deterministic_algorithms(True)
        # Filling is a pass over every new tensor, and none is read unwritten.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def prove(self, device: torch.device) -> None:
        """Raises UserError where device memory is to be handed to MPI and does not arrive (collective)."""
        if self.comm is not None:
            from mpiprop.transport.buffers import cuda_aware, prove
            if all(self.comm.allgather(cuda_aware(device))):
                prove(self.comm, device)

    def shrunk(self) -> "World":
        """The ranks that are left after some died (collective among them; needs an MPI that survives it)."""
        return self.of(self.comm.Shrink())

    def crowded(self, device: torch.device) -> str:
        """Which GPUs several ranks share, as text; empty where none does (collective)."""
        if self.size == 1:
            return ""
        mine = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)) if device.type == "cuda" else None
        counts = Counter(gpu for gpu in self.comm.allgather(mine) if gpu)
        return ", ".join(f"{n} ranks share GPU {uuid} of {host}" for (host, uuid), n in counts.items() if n > 1)

    def together(self, part: Callable[[], Any], by: int | None = None) -> Any:
        """What `part` returns: on every rank its own, or with `by` that rank's, sent to all (the others do nothing).

        Where it raises on any rank, every rank raises the same error.
        """
        value, error = None, None
        if by is None or by % self.size == self.rank:
            try:
                value = part()
            except Exception as raised:
                if self.size == 1:
                    raise
                error = raised
        if self.size == 1:
            return value
        patiently(self.comm.Ibarrier().Test)  # the long wait is a polite one
        failures = [failure for failure in self.comm.allgather(self._tell(error)) if failure]
        if failures:
            raise coded(*failures[0]) from error
        return value if by is None else self.comm.bcast(value, by % self.size)

    def gather(self, value: Any) -> list[Any]:
        """The values that all ranks give, in their order, on every rank (collective)."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def _abort(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """What nobody caught ends the whole job: a rank that only dies leaves the others waiting for it."""
        print(f"mpiprop: {self.names[self.rank]}: {kind.__name__}: {error} (a defect)", file=sys.stderr, flush=True)
        traceback.print_exception(kind, error, trace)
        self.comm.Abort(FAILED)

    def _tell(self, error: Exception | None) -> tuple[int, str] | None:
        if error is None:
            return None
        if isinstance(error, (UserError, RunError)):
            return exit_code(error), str(error)
        return FAILED, f"{self.names[self.rank]}: {type(error).__name__}: {error}"
