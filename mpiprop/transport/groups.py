"""Which rank does what: rank 0 leads; the others form groups of `shards` ranks, each of which evaluates one step at a time.

Rank 0 talks to the first rank of each group alone, which passes its theta on and sums the gradients of the parts: through
rank 0's link goes what the window needs, however many ranks share its steps.
"""

from collections.abc import Callable
from functools import partial

import torch
from mpi4py import MPI

from mpiprop.core.theta import Layout
from mpiprop.transport.base import Unit
from mpiprop.transport.mpi import Mpi, serve
from mpiprop.transport.sharded import Shared
from mpiprop.transport.buffers import cuda_aware
from mpiprop.transport.world import World


def groups(size: int, shards: int) -> list[list[int]]:
    """The ranks 1 to size - 1 in groups of `shards`; the last may be smaller."""
    return [list(range(first, min(first + shards, size))) for first in range(1, size, shards)]


def lead(world: World, device: torch.device, shards: int, stopped: Callable[[], bool], *, patience: float, go_on: bool,
         say: Callable[[str], None]) -> Mpi:
    """Rank 0's transport (collective with `attend` on the others)."""
    world.comm.Split(MPI.UNDEFINED)
    return Mpi(world.comm, device, stopped, cuda_aware=cuda_aware(device), groups=groups(world.size, shards),
               patience=patience, go_on=go_on, names=world.names, say=say)


def attend(world: World, device: torch.device, shards: int, stopped: Callable[[], bool], unit: Unit, layout: Layout, *,
           patience: float, go_on: bool) -> dict:
    """Any other rank's life; what it is told at its end (see `serve`)."""
    parts, aware = groups(world.size, shards), cuda_aware(device)
    (mine,) = (i for i, ranks in enumerate(parts) if world.rank in ranks)
    group = world.comm.Split(mine)
    alone = unit if shards == 1 else Shared(unit, shards)
    if group.rank:
        try:
            return serve(group, unit, layout, device, stopped, cuda_aware=aware, alerts_to=world.comm)
        except MPI.Exception:  # the first of the group died; rank 0 knows, and takes this rank in its place
            return serve(world.comm, alone, layout, device, stopped, cuda_aware=aware)
    if group.size == 1:
        return serve(world.comm, alone, layout, device, stopped, cuda_aware=aware)
    fan = Mpi(group, device, lambda: False, cuda_aware=aware, patience=patience, go_on=go_on,
              names=[world.names[rank] for rank in parts[mine]], say=partial(print, flush=True))
    told = serve(world.comm, Shared(unit, shards, fan), layout, device, stopped, cuda_aware=aware)
    fan.close(told["code"], told["shrink"])
    return told
