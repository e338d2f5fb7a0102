"""s over MPI: rank 0 hands out thetas and takes in gradients, the other ranks evaluate.

A task is a header (kind, tau, L, which part of the batch) and the flat theta; a reply is a header (kind, tau, D, seconds,
scalars) and the flat gradient. Buffers only, nothing pickled. Steps go out in the order in which they were asked for, each to
the first idle worker; since a drift is a pure function of (theta, tau, seed), who evaluates it does not show in the result.
Every wait polls and sleeps: waiting ranks leave the cores to those that work, and signal handlers run.
"""

import json
import socket
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, sleep

import numpy as np
import torch
from mpi4py import MPI

from mpiprop.core.errors import PREEMPTED, Lost, Preempted, RunError, UserError, coded, exit_code
from mpiprop.core.theta import Drift, Layout, Theta
from mpiprop.transport.base import Busy, Unit
from mpiprop.transport.buffers import Wire

TASK, STOP, DRIFT, FAILURE, ALERT = range(1, 6)  # kinds of message; also the tags of headers
HEADER = 4096  # bytes
FIRST, LATER = 10, 20  # a first evaluation may take so many times the patience, a later one so many times the slowest


def patiently(done: Callable[[], bool], until: float = float("inf")) -> bool:
    """Poll `done` until it holds, with growing naps of up to 1 ms; False if the clock passes `until` first."""
    nap = 2e-5
    while not done():
        if perf_counter() > until:
            return False
        sleep(nap)
        nap = min(2 * nap, 1e-3)
    return True


def pack(**record: object) -> np.ndarray:
    """A header as a fixed-size block of JSON bytes."""
    text = json.dumps(record, ensure_ascii=False).encode()
    if len(text) > HEADER:
        raise RunError(f"a message of {len(text)} bytes: more losses than a header of {HEADER} holds")
    return np.frombuffer(text.ljust(HEADER), dtype=np.uint8)


def unpack(header: np.ndarray) -> dict:
    return json.loads(header.tobytes())


class Request:
    """A step, or a part of its batch, on its way: asked for, sent, being evaluated, arrived."""

    def __init__(self, transport: "Mpi", theta: Theta, tau: int, *part: int) -> None:
        self.transport, self.theta, self.tau, self.part = transport, theta, tau, part
        self.drift: Drift | None = None

    def result(self) -> Drift:
        self.transport.await_(lambda: self.drift is not None)
        return self.drift


class Worker:
    """What is known of one worker: the request it has, the messages in between, and who could take its place."""

    def __init__(self, rank: int, heirs: Sequence[int] = ()) -> None:
        self.rank, self.heirs, self.request, self.reply, self.grad, self.outgoing = rank, heirs, None, None, None, []
        self.header, self.deadline, self.fresh = np.empty(HEADER, np.uint8), float("inf"), True


class Mpi:
    """A parallel s over other ranks of `comm`.

    groups: ranks of `comm`; the first of each answers for it (default: every other rank is a group)
    names: what the ranks of `comm` are called in messages
    patience: seconds after which a worker that does not answer is taken for hung, unless evaluations are slow
    go_on: whether to do without workers that die (needs an MPI that survives it)
    """

    def __init__(self, comm: MPI.Comm, device: torch.device, stopped: Callable[[], bool], *, cuda_aware: bool = False,
                 groups: Sequence[Sequence[int]] | None = None, patience: float = float("inf"), go_on: bool = False,
                 names: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
        self.comm, self.stopped, self.busy, self.say = comm, stopped, Busy(), say
        self.names = names or [f"rank {rank}" for rank in range(comm.size)]
        self.wire, self.patience, self.go_on = Wire(comm, device, cuda_aware), patience, go_on
        self.workers = [Worker(first, rest) for first, *rest in groups or [[rank] for rank in range(1, comm.size)]]
        self.queue: deque[Request] = deque()
        self.ranks = comm.size
        self.lost: list[Worker] = []
        self.slowest, self.hung = 0.0, False

    def __call__(self, theta: Theta, tau: int, *part: int) -> Request:
        request = Request(self, theta, tau, *part)
        self.queue.append(request)
        self.progress()
        return request

    def deliver(self) -> None:
        """Wait until what was handed out is delivered: messages do not travel while this rank computes."""
        def delivered(worker: Worker) -> bool:
            return all(request.Test() for request, _ in worker.outgoing)

        def turn() -> bool:
            self.progress()
            return all([self._guarded(delivered, worker) for worker in list(self.workers)])
        patiently(turn)

    def await_(self, done: Callable[[], bool]) -> None:
        """Keep the traffic moving until `done`. Raises Preempted, Lost, or the error that a worker reports."""
        def turn() -> bool:
            if self.asked():
                raise Preempted
            self.progress()
            if not self.workers:
                raise Lost("no rank is left to evaluate")
            return done()
        patiently(turn)

    def asked(self) -> bool:
        """Whether this rank or a worker has been told to leave."""
        return self.stopped() or self._alerted()

    def _alerted(self) -> bool:
        try:
            return self.comm.Iprobe(MPI.ANY_SOURCE, ALERT)
        except MPI.Exception:  # a rank has died: `progress` finds out whether that matters here
            if self.go_on:
                self.comm.Ack_failed()
            return False

    def progress(self) -> None:
        """Take in what has arrived and hand out what waits, without waiting."""
        for worker in list(self.workers):
            self._guarded(self._advance, worker)
            if perf_counter() > worker.deadline:
                self.hung = True
                raise Lost(f"{self.names[worker.rank]} has not answered for {perf_counter() - worker.since:.0f} s at step "
                           f"{worker.request.tau}: it hangs, or its host does")

    def _guarded(self, act: Callable[[Worker], bool | None], worker: Worker) -> bool | None:
        """What `act` returns; where it shows that `worker` has died, that is seen to."""
        try:
            return act(worker)
        except MPI.Exception as error:
            self._lose(worker, f"is gone ({error})")

    def _advance(self, worker: Worker) -> None:
        if worker.grad is not None and worker.grad[0].Test():
            self._land(worker)
        elif worker.grad is None and worker.reply is not None and worker.reply.Test():
            self._open(worker)
        if worker.request is None and self.queue:
            self._assign(worker, self.queue.popleft())

    def _assign(self, worker: Worker, request: Request) -> None:
        flat = request.theta.flat
        header = pack(kind=TASK, tau=request.tau, L=len(flat), part=request.part)
        worker.request, worker.since = request, perf_counter()
        worker.deadline = worker.since + (FIRST * self.patience if worker.fresh else max(self.patience, LATER * self.slowest))
        worker.outgoing = [(self.comm.Isend(header, worker.rank, TASK), header), self.wire.send(flat, worker.rank)]
        worker.reply = self.comm.Irecv(worker.header, worker.rank, DRIFT)

    def _open(self, worker: Worker) -> None:
        record = unpack(worker.header)
        if record["kind"] == FAILURE:
            worker.request, worker.reply, worker.deadline = None, None, float("inf")
            raise coded(record["code"], record["text"])
        self.busy.add(record["seconds"])
        self.slowest = max(self.slowest, record["seconds"])
        worker.grad = (*self.wire.receive(record["D"], worker.rank), record)

    def _land(self, worker: Worker) -> None:
        _, vector, record = worker.grad
        MPI.Request.Waitall([request for request, _ in worker.outgoing])
        worker.request.drift = drift = Drift(self.wire.arrived(vector), record["scalars"], record["seconds"])
        weakref.finalize(drift, self.wire.spare.append, vector)  # free again when the rollout has used the drift
        worker.request = worker.reply = worker.grad = None
        worker.outgoing, worker.deadline, worker.fresh = [], float("inf"), False

    def _lose(self, worker: Worker, why: str) -> None:
        """Do without `worker`: others take its step, and the rest of its group work on their own."""
        worker.deadline = float("inf")
        self.workers.remove(worker)
        self.lost.append(worker)  # with its buffers, that MPI may still know
        self.workers += [Worker(rank) for rank in worker.heirs]
        if worker.request is not None:
            self.queue.appendleft(worker.request)
        if not self.go_on:
            raise Lost(f"{self.names[worker.rank]} {why}")
        self.comm.Ack_failed()
        self.say(f"{self.names[worker.rank]} {why}; going on with {len(self.workers)} workers")

    def close(self, code: int | None, shrink: bool = False, grace: float = 60.0) -> bool:
        """Let running evaluations end, then send every worker home with this exit code, or to the next stage with None;
        abort if some do not answer. Returns whether the job has to do without some ranks, known before if `shrink`."""
        self.queue.clear()

        def settled() -> bool:
            try:
                self.progress()
            except (RunError, UserError):
                pass  # one failure has been told already
            return self.hung or all(worker.request is None for worker in self.workers)
        if not patiently(settled, perf_counter() + grace) or self.hung or self.lost and not self.go_on:
            self.say("some ranks do not answer; ending the job")
            self.comm.Abort(PREEMPTED if code is None else code)
        shrink = shrink or self.go_on and self.comm.Get_failed().size > 0
        header = pack(kind=STOP, code=code, shrink=shrink)
        requests = [self.comm.Isend(header, worker.rank, TASK) for worker in self.workers]
        patiently(lambda: MPI.Request.Testall(requests))
        while self._alerted():
            self.comm.Recv([bytearray(0), MPI.BYTE], MPI.ANY_SOURCE, ALERT)
        return shrink


def serve(comm: MPI.Comm, unit: Unit, layout: Layout, device: torch.device, stopped: Callable[[], bool], *,
          cuda_aware: bool = False, alerts_to: MPI.Comm | None = None) -> dict:
    """A worker's life: evaluate what rank 0 of `comm` sends until it says stop. Returns what it says then: the exit code of
    the run, or None where another stage follows, and whether ranks were lost. Raises MPI.Exception where that rank dies."""
    wire, header = Wire(comm, device, cuda_aware), np.empty(HEADER, np.uint8)
    alerts: list[MPI.Request] = []
    while True:
        request, arrived = comm.Irecv(header, 0, TASK), False
        while not arrived:
            if stopped() and not alerts:
                alerts.append((alerts_to or comm).Isend([bytearray(0), MPI.BYTE], 0, ALERT))
            arrived = patiently(request.Test, perf_counter() + 0.05)
        task = unpack(header)
        if task["kind"] == STOP:
            return task
        request, flat = wire.receive(task["L"], 0)
        patiently(request.Test)
        try:
            drift = unit(Theta(wire.arrived(flat), layout.of_length(task["L"])), task["tau"], *task["part"])
            reply = pack(kind=DRIFT, tau=task["tau"], D=len(drift.grad), seconds=drift.seconds, scalars=dict(drift.scalars))
        except Exception as error:
            report_failure(comm, error, f"step {task['tau']}")
            continue
        finally:
            wire.spare = [flat]
        outgoing = [(comm.Isend(reply, 0, DRIFT), reply), wire.send(drift.grad, 0)]
        patiently(lambda: MPI.Request.Testall([request for request, _ in outgoing]))


def report_failure(comm: MPI.Comm, error: BaseException, where: str) -> None:
    """Tell rank 0 why this rank cannot go on; it stops the job."""
    text = str(error) if isinstance(error, (UserError, RunError)) else f"{type(error).__name__}: {error}"
    rank = MPI.COMM_WORLD.rank
    line = f"rank {rank} on {socket.gethostname()}, {where}: {text}"[: HEADER // 8]  # up to 4 bytes a letter
    patiently(comm.Isend(pack(kind=FAILURE, code=exit_code(error), text=line), 0, DRIFT).Test)
