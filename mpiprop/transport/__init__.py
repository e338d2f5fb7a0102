"""How steps reach the ranks that evaluate them. `connect` is the door; `base` says what a backend has to offer."""

from collections.abc import Callable

import torch

from mpiprop.core.theta import Layout
from mpiprop.transport.base import End, Transport, Unit
from mpiprop.transport.serial import Serial
from mpiprop.transport.sharded import Sharded
from mpiprop.transport.world import World


def connect(world: World, unit: Unit | None, layout: Layout, device: torch.device, stopped: Callable[[], bool], *,
            shards: int = 1, patience: float = float("inf"), go_on: bool = False,
            say: Callable[[str], None] = print) -> Transport | End:
    """The transport of the algorithm on root; any other rank serves it and returns how that ended (collective).

    unit: evaluates steps; None on a root that has other ranks to evaluate for it
    layout: that of theta, for any number of points
    stopped: whether this rank has been told to leave
    shards: ranks that share the batch of a step
    patience: seconds after which a rank that does not answer counts as hung, unless evaluations are slow
    go_on: whether to do without ranks that die (needs an MPI that survives it)
    say: takes lines for the user on root
    """
    if world.size > 1:
        from mpiprop.transport import groups
        return groups.connect(world, unit, layout, device, stopped, shards=shards, patience=patience, go_on=go_on, say=say)
    assert unit is not None, "a process alone evaluates"
    return Serial(unit if shards == 1 else Sharded(unit, shards), stopped)
