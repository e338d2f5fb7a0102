"""Rank 0's side of the MPI transport: it hands out thetas and takes in drifts, the other ranks evaluate.

Steps go out in the order in which they were asked for, each to the first idle worker. A worker keeps its drift until root takes
it: root takes the one that is waited for, those that come next, and as many more as workers are needed for other steps. Root's
memory thus holds two gradients, each as large as theta, instead of a window of them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from mpiprop.core.errors import PREEMPTED, Lost, Preempted, coded
from mpiprop.core.theta import Drift, Theta
from mpiprop.transport.base import Busy, patiently
from mpiprop.transport.buffers import Wire
from mpiprop.transport.messages import ALERT, DRIFT, FAILURE, HEADER, STOP, TASK, length, pack, unpack, unpack_drift

NEXT = 2  # drifts that root takes in at a time, in the order in which they were asked for
FIRST, LATER = 10, 20  # a first evaluation may take so many times the patience, a later one so many times the slowest


class Request:
    """A step, or a part of its batch, on its way: asked for, sent, being evaluated, arrived."""

    def __init__(self, transport: "Root", theta: Theta, tau: int, part: tuple[int, ...]) -> None:
        self.transport, self.tau, self.part = transport, tau, part
        self.theta: Theta | None = theta  # until the drift is there
        self.drift: Drift | None = None

    def result(self) -> Drift:
        """Wait for the drift. Raises Preempted, Lost, or the error that a worker reports."""
        return self.transport.wait(self)


class Worker:
    """What root knows of one worker: the request it has, the messages in between, and who could take its place."""

    def __init__(self, rank: int, helpers: Sequence[int] = ()) -> None:
        self.rank, self.helpers = rank, helpers  # the other ranks of its group
        self.request: Request | None = None
        self.outgoing: list[tuple[MPI.Request, object]] = []  # sends begun, with what must stay alive until they end
        self.header = np.empty(HEADER, np.uint8)
        self.reply: MPI.Request | None = None  # receives the header
        self.record: dict[str, Any] | None = None  # the header, once it is there
        self.payload: tuple[MPI.Request, Tensor] | None = None  # receives the vector
        self.since, self.deadline, self.fresh = 0.0, float("inf"), True


class Root:
    """Evaluates steps on the other ranks of `comm`.

    groups: ranks of `comm`; the first of each answers for it (default: every other rank is a group)
    names: what the ranks of `comm` are called in messages
    patience: seconds after which a worker that does not answer counts as hung, unless evaluations are slow
    go_on: whether to do without workers that die (needs an MPI that survives it)
    """

    def __init__(self, comm: Any, device: torch.device, stopped: Callable[[], bool], *, cuda_aware: bool = False,
                 groups: Sequence[Sequence[int]] | None = None, patience: float = float("inf"), go_on: bool = False,
                 names: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
        self.comm, self.stopped, self.busy, self.say = comm, stopped, Busy(), say
        self.names = names or [f"rank {rank}" for rank in range(comm.size)]
        self.wire, self.patience, self.go_on = Wire(comm, device, cuda_aware), patience, go_on
        self.workers = [Worker(first, rest) for first, *rest in groups or [[rank] for rank in range(1, comm.size)]]
        self.queue: deque[Request] = deque()  # not handed out yet
        self.expected: list[Request] = []  # nobody has waited for these yet
        self.ranks: int = comm.size
        self.lost: list[Worker] = []
        self.failure: Exception | None = None  # the first one; raised by whoever waits next
        self.slowest, self.hung, self.closing = 0.0, False, False

    def __call__(self, theta: Theta, tau: int, *part: int) -> Request:
        request = Request(self, theta, tau, part)
        self.queue.append(request)
        self.expected.append(request)
        self.progress()
        return request

    def deliver(self) -> None:
        """Wait until what was handed out has been sent: messages do not travel while this rank computes."""
        def sent(worker: Worker) -> bool:
            return all(send.Test() for send, _ in worker.outgoing)

        def turn() -> bool:
            self.progress()
            return self.failure is not None or all([self._guarded(sent, worker) for worker in list(self.workers)])
        patiently(turn)

    def wait(self, request: Request) -> Drift:
        """Keep the traffic moving until the drift of `request` is there. Raises what `Request.result` does."""
        def turn() -> bool:
            if self.asked():
                raise Preempted
            self.progress()
            if self.failure is not None:
                raise self.failure
            if not self.workers:
                raise Lost("no rank is left to evaluate")
            return request.drift is not None

        if request in self.expected:
            self.expected.remove(request)
        patiently(turn)
        assert request.drift is not None
        return request.drift

    def asked(self) -> bool:
        """Whether this rank or a worker has been told to leave."""
        return self.stopped() or self._alerted()

    def _alerted(self) -> bool:
        try:
            return bool(self.comm.Iprobe(MPI.ANY_SOURCE, ALERT))
        except MPI.Exception:  # a rank has died: `progress` finds out whether that matters here
            if self.go_on:
                self.comm.Ack_failed()
            return False

    def progress(self) -> None:
        """Take in what has arrived and hand out what waits, without waiting. What goes wrong is kept in `failure`."""
        for worker in list(self.workers):
            self._guarded(self._advance, worker)
            if perf_counter() > worker.deadline and worker.request is not None:
                self.hung, worker.deadline = True, float("inf")
                self._fail(Lost(f"{self.names[worker.rank]} has not answered for {perf_counter() - worker.since:.0f} s at step "
                                f"{worker.request.tau}: it hangs, or its host does"))

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error

    def _guarded(self, act: Callable[[Worker], bool], worker: Worker) -> bool:
        """What `act` returns; where it shows that `worker` has died, that is seen to."""
        try:
            return act(worker)
        except MPI.Exception as error:
            self._lose(worker, f"is gone ({error})")
            return False

    def _advance(self, worker: Worker) -> bool:
        if worker.reply is not None and worker.reply.Test():
            worker.reply = None
            self._open(worker)
        if worker.record is not None and worker.payload is None and self._wanted(worker.request):
            worker.payload = self.wire.receive(length(worker.record), worker.rank)
            worker.deadline = perf_counter() + max(self.patience, LATER * self.slowest)
        if worker.payload is not None and worker.payload[0].Test():
            self._land(worker)
        if worker.request is None and self.queue:
            self._assign(worker, self.queue.popleft())
        return True

    def _wanted(self, request: Request | None) -> bool:
        """Whether the drift of an evaluated request is to be taken in now."""
        free = sum(worker.request is None or worker.payload is not None for worker in self.workers)
        return request not in self.expected[NEXT - 1:] or len(self.queue) > free or self.closing

    def _assign(self, worker: Worker, request: Request) -> None:
        assert request.theta is not None
        flat = request.theta.flat
        header = pack(kind=TASK, tau=request.tau, L=len(flat), part=request.part)
        worker.request, worker.since = request, perf_counter()
        worker.deadline = worker.since + (FIRST * self.patience if worker.fresh else max(self.patience, LATER * self.slowest))
        worker.outgoing = [(self.comm.Isend(header, worker.rank, TASK), header), self.wire.send(flat, worker.rank)]
        worker.reply = self.comm.Irecv(worker.header, worker.rank, DRIFT)

    def _open(self, worker: Worker) -> None:
        """Read the header of a reply."""
        record, worker.deadline = unpack(worker.header), float("inf")
        if record["kind"] == FAILURE:
            worker.request = None
            self._fail(coded(record["code"], record["text"]))
            return
        self.busy.add(record["seconds"])
        self.slowest = max(self.slowest, record["seconds"])
        worker.record, worker.fresh = record, False

    def _land(self, worker: Worker) -> None:
        """Give the drift that has arrived to its request."""
        assert worker.request is not None and worker.record is not None and worker.payload is not None
        patiently(lambda: all(send.Test() for send, _ in worker.outgoing))
        worker.request.drift = unpack_drift(worker.record, self.wire.arrived(worker.payload[1]))
        worker.request.theta = worker.request = worker.record = worker.payload = None
        worker.outgoing, worker.deadline = [], float("inf")

    def _lose(self, worker: Worker, why: str) -> None:
        """Do without `worker`: others take its step, and the rest of its group work on their own."""
        worker.deadline = float("inf")
        self.workers.remove(worker)
        self.lost.append(worker)  # with its buffers, that MPI may still know
        self.workers += [Worker(rank) for rank in worker.helpers]
        if worker.request is not None:
            self.queue.appendleft(worker.request)
        if not self.go_on:
            self._fail(Lost(f"{self.names[worker.rank]} {why}"))
            return
        self.comm.Ack_failed()
        self.say(f"{self.names[worker.rank]} {why}; going on with {len(self.workers)} workers")

    def close(self, code: int | None, shrink: bool = False, grace: float = 60.0) -> bool:
        """Let running evaluations end, then send every worker this exit code, or to the next stage with None.

        Aborts the job if some do not answer. Returns whether ranks were lost, `shrink` if that is known already.
        """
        self.queue.clear()
        self.closing = True

        def settled() -> bool:
            self.progress()
            return self.hung or all(worker.request is None for worker in self.workers)
        if not patiently(settled, perf_counter() + grace) or self.hung or self.lost and not self.go_on:
            self.say("some ranks do not answer; ending the job")
            self.comm.Abort(PREEMPTED if code is None else code)
        shrink = shrink or self.go_on and self.comm.Get_failed().size > 0
        header = pack(kind=STOP, code=code, shrink=shrink)
        sends = [self.comm.Isend(header, worker.rank, TASK) for worker in self.workers]
        patiently(lambda: all(send.Test() for send in sends))
        while self._alerted():
            self.comm.Recv([bytearray(0), MPI.BYTE], MPI.ANY_SOURCE, ALERT)
        return shrink
