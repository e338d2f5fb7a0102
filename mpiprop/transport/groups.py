"""Which rank does what: rank 0 leads; the others form groups of `shards` ranks, each of which evaluates one step at a time.

Rank 0 talks to the first rank of each group alone, which passes its theta on and sums the gradients of the parts. The traffic
of rank 0 is what the window needs, however many ranks share its steps.
"""

from collections.abc import Callable
from functools import partial

import torch
from mpi4py import MPI

from mpiprop.core.theta import Layout
from mpiprop.transport.base import End, Unit
from mpiprop.transport.buffers import cuda_aware
from mpiprop.transport.root import Root
from mpiprop.transport.sharded import Sharded
from mpiprop.transport.worker import serve
from mpiprop.transport.world import World


def groups(size: int, shards: int) -> list[list[int]]:
    """The ranks 1 to size - 1 in groups of `shards`; the last may be smaller."""
    return [list(range(first, min(first + shards, size))) for first in range(1, size, shards)]


def connect(world: World, unit: Unit | None, layout: Layout, device: torch.device, stopped: Callable[[], bool], *, shards: int,
            patience: float, go_on: bool, say: Callable[[str], None]) -> Root | End:
    """Root's transport; any other rank serves it and returns how that ended (collective). See transport.connect."""
    teams, aware = groups(world.size, shards), cuda_aware(device)
    mine = next((i for i, ranks in enumerate(teams) if world.rank in ranks), None)
    group = world.comm.Split(MPI.UNDEFINED if mine is None else mine)
    if mine is None:
        return Root(world.comm, device, stopped, cuda_aware=aware, groups=teams, patience=patience, go_on=go_on,
                    names=world.names, say=say)
    assert unit is not None, "all ranks but root evaluate"
    serve_root = partial(serve, layout=layout, device=device, stopped=stopped, cuda_aware=aware, name=world.names[world.rank])
    alone = unit if shards == 1 else Sharded(unit, shards)
    if group.rank:
        try:
            return serve_root(group, unit, alerts_to=world.comm)
        except MPI.Exception:  # the first of the group died; root knows, and takes this rank in its place
            return serve_root(world.comm, alone)
    if group.size == 1:
        return serve_root(world.comm, alone)
    helpers = Root(group, device, lambda: False, cuda_aware=aware, patience=patience, go_on=go_on,
                   names=[world.names[rank] for rank in teams[mine]], say=partial(print, flush=True))
    end = serve_root(world.comm, Sharded(unit, shards, helpers))
    helpers.close(end.code, end.shrink)
    return end
