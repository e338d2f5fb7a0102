"""Root, workers and groups, rank by rank in threads: every drift is that of one process, whatever happens on the way."""

import threading

import pytest
import torch
from communicator import Killed, ranks, until

from mpiprop import transport
from mpiprop.core import ancestry
from mpiprop.core.errors import Lost, Preempted, RunError, UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Drift, Layout, Theta
from mpiprop.transport.base import End
from mpiprop.transport.messages import HEADER, PAYLOAD, length, pack, pack_drift, unpack, unpack_drift
from mpiprop.transport.serial import Serial
from mpiprop.transport.sharded import Sharded

CPU = torch.device("cpu")
LAYOUT = Layout.of([("cloud.x", (4, 3), "x"), ("b", (5,), "b")], per_point={"cloud.x"})


def theta(tau: int, N: int = 4) -> Theta:
    layout = LAYOUT.of_points(N)
    return Theta(normal(Streams(0, tau)("theta"), layout.L), layout, ancestry.roots(N))


class Lent:
    """A unit that gives every drift in the same memory, as a scene does; the parts of a batch are its shares."""

    def __init__(self) -> None:
        self.grad, self.asked = torch.empty(0), []

    def __call__(self, theta: Theta, tau: int, part: int = 0, parts: int = 1) -> Drift:
        self.asked.append((tau, part))
        layout = theta.layout
        self.grad = self.grad if len(self.grad) == layout.D else torch.empty(layout.D)
        torch.sin(theta.trained * (tau + 1), out=self.grad).div_(parts).mul_(1 + part)
        points = theta.flat[layout.entries[0].span].view(-1, 3)  # fails if the layout is not that of these points
        return Drift(self.grad, {"loss": float(tau + part)}, 1e-3, {"moves": points.sum(1) / parts},
                     {"sketch": self.grad[None, :2].clone()})


def same(a: Drift, b: Drift) -> bool:
    return (torch.equal(a.grad, b.grad) and a.scalars == b.scalars
            and all(torch.equal(a.statistics[name], b.statistics[name]) for name in b.statistics)
            and all(torch.equal(a.sums[name], b.sums[name]) for name in b.sums) and set(a.statistics) == set(b.statistics))


def serve(world, unit, **keys):
    """The transport on root; what the others are told at the end."""
    return transport.connect(world, unit if world.rank else None, LAYOUT, CPU, keys.pop("stopped", lambda: False), **keys)


@pytest.mark.parametrize("n, shards", [(2, 1), (4, 1), (3, 2), (7, 2), (4, 3), (3, 5)])
@pytest.mark.parametrize("order", [1, -1])
def test_drifts_are_those_of_one_process_in_whatever_order_they_are_waited_for(n, shards, order):
    """More steps than workers, clouds of several sizes, groups that are not full; units lend their memory."""
    steps = [(tau, 2 + tau % 3) for tau in range(9)]

    def program(world):
        service = serve(world, Lent(), shards=shards)
        if isinstance(service, End):
            return service
        promises = [service(theta(tau, N), tau) for tau, N in steps]
        found = [promise.result() for promise in promises[::order]][::order]
        assert service.ranks == n and service.busy.since(0.0)[0] == len(steps) and not service.close(None)
        return found
    found, *ends = ranks(n, program)
    alone = Serial(Lent() if shards == 1 else Sharded(Lent(), shards), lambda: False)
    assert all(same(drift, alone(theta(tau, N), tau).result()) for drift, (tau, N) in zip(found, steps))
    assert ends == [End(None, False)] * (n - 1)


def test_a_drift_may_be_asked_for_again_and_stays_what_it_was():
    def program(world):
        service = serve(world, Lent())
        if isinstance(service, End):
            return
        first = service(theta(0), 0)
        before = first.result().clone()
        for tau in range(1, 6):
            service(theta(tau), tau).result()
        assert same(first.result(), before)
        service.close(0)
    ranks(3, program)


def test_root_takes_in_a_drift_when_its_turn_is_near():
    """All six have been evaluated; of five that nobody has waited for, root holds the one that comes next."""
    evaluated = []

    def program(world):
        service = serve(world, lambda theta, tau, *part: evaluated.append(tau) or Lent()(theta, tau))
        if isinstance(service, End):
            return
        promises = [service(theta(tau), tau) for tau in range(6)]
        until(lambda: service.progress() or len(evaluated) == 6 and world.comm.fabric.delivered[0, PAYLOAD] >= 1)
        promises[0].result()
        until(lambda: service.progress() or world.comm.fabric.delivered[0, PAYLOAD] >= 2)
        for _ in range(100):
            service.progress()
        assert world.comm.fabric.delivered[0, PAYLOAD] == 2
        assert all(same(promise.result(), Lent()(theta(tau), tau)) for tau, promise in enumerate(promises))
        service.close(0)
    ranks(7, program)


@pytest.mark.parametrize("kind, error", [(UserError("no such file"), UserError), (RunError("not finite"), RunError),
                                         (ValueError("x"), RunError)])
@pytest.mark.parametrize("n, shards", [(3, 1), (3, 2)])
def test_an_error_on_a_worker_is_raised_where_its_drift_is_waited_for(kind, error, n, shards):
    def program(world):
        def unit(theta, tau, part=0, parts=1):
            if tau == 3:
                raise kind
            return Lent()(theta, tau, part, parts)
        service = serve(world, unit, shards=shards)
        if isinstance(service, End):
            return service
        promises = [service(theta(tau), tau) for tau in range(5)]
        with pytest.raises(error, match=r"rank \d on here, step 3: .*" + str(kind)):
            for promise in promises:
                promise.result()
        service.close(2)
    assert ranks(n, program)[1:] == [End(2, False)] * (n - 1)


def test_a_rank_that_is_asked_to_leave_interrupts_the_wait_and_nothing_is_left_of_it():
    go, asked = threading.Event(), threading.Event()

    def program(world):
        def unit(theta, tau, *part):
            assert go.wait(30)
            return Lent()(theta, tau)
        service = serve(world, unit, stopped=lambda: world.rank == 2 and asked.is_set())
        if isinstance(service, End):
            return
        assert not service.asked()
        promise = service(theta(0), 0)
        asked.set()
        with pytest.raises(Preempted):
            promise.result()
        go.set()
        service.close(75)
        assert not service.asked()
    ranks(3, program)


@pytest.mark.parametrize("shards, victim", [(1, 2), (2, 1), (2, 2)])
def test_others_take_the_step_of_a_rank_that_dies(shards, victim):
    """A worker, the first of a group, and the second of one."""
    def program(world):
        lent = Lent()

        def unit(theta, tau, part=0, parts=1):
            if world.rank == victim:
                raise Killed
            return lent(theta, tau, part, parts)
        service = serve(world, unit, shards=shards, go_on=True, say=lambda line: None)
        if isinstance(service, End):
            return service
        promises = [service(theta(tau), tau) for tau in range(8)]
        return [promise.result() for promise in promises], service.close(None)
    (found, shrink), *ends = ranks(5, program)
    alone = Lent() if shards == 1 else Sharded(Lent(), shards)
    assert all(same(drift, alone(theta(tau), tau)) for tau, drift in enumerate(found))
    assert shrink and ends.pop(victim - 1) is None and ends == [End(None, True)] * 3


@pytest.mark.parametrize("step, why", [(1, r"is gone \(process failed\)"), (2, "has not answered for 0 s at step 2")])
def test_a_rank_that_dies_or_hangs_is_named_and_the_job_ended(step, why):
    go, aborted = threading.Event(), []

    def program(world):
        def unit(theta, tau, *part):
            if tau == 1:
                raise Killed
            assert tau == 0 or go.wait(30)
            return Lent()(theta, tau)
        service = serve(world, unit, patience=0.02, say=lambda line: None)
        if isinstance(service, End):
            return
        service(theta(0), 0).result()
        with pytest.raises(Lost, match="rank 1 on here " + why):
            service(theta(step), step).result()
        aborted.append(world.comm.fabric.aborted)
        go.set()
        service.close(75)
    assert ranks(2, program) == [None, None] and aborted == [[75]]


def test_a_process_alone_evaluates_when_it_is_asked_to():
    unit, asked = Lent(), []
    service = transport.connect(transport.World(), unit, LAYOUT, CPU, lambda: bool(asked))
    promises = [service(theta(tau), tau) for tau in range(3)]
    assert not unit.asked and service.ranks == 1
    assert [same(promise.result(), Lent()(theta(tau), tau)) for tau, promise in enumerate(promises)] == [True] * 3
    assert same(promises[0].result(), Lent()(theta(0), 0)) and len(unit.asked) == 3  # evaluated once
    asked.append(True)
    with pytest.raises(Preempted):
        promises[1].result()
    assert not service.close(0)


def test_a_message_says_what_it_was_made_of_or_that_it_is_too_long():
    drift = Lent()(theta(3), 3)
    record, vector = pack_drift(drift)
    received = unpack(pack(kind=3, **record))
    assert length(received) == len(vector) and same(unpack_drift(received, vector), drift)
    plain = Drift(torch.ones(7))
    assert pack_drift(plain)[1] is plain.grad  # nothing is copied where nothing follows
    with pytest.raises(RunError, match="more losses"):
        pack(scalars={"x" * HEADER: 1.0})
