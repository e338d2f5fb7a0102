"""s over MPI: rank 0 hands out thetas and takes in gradients, the other ranks evaluate.

A task is a header (kind, tau, L) and the flat theta; a reply is a header (kind, tau, D, seconds, scalars) and the flat
gradient. Buffers only, nothing pickled. Steps go out in the order in which they were asked for, each to the first idle
worker; since a drift is a pure function of (theta, tau, seed), who evaluates it does not show in the result. Every wait
polls and sleeps: waiting ranks leave the cores to those that work, and signal handlers run.
"""

import json
import socket
import weakref
from collections import deque
from collections.abc import Callable
from time import perf_counter, sleep

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from ..core.errors import FAILED, MISTAKE, Preempted, RunError, UserError
from ..core.theta import Drift, Layout, Theta
from .base import Busy, Unit

TASK, STOP, DRIFT, FAILURE, ALERT = range(1, 6)  # kinds of message; also the tags of headers
PAYLOAD = 9
HEADER = 4096  # bytes


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


class Wire:
    """Moves flat vectors between a device and MPI: as they are where MPI can read them, through pinned memory else.

    Receives go into buffers that were given back: fresh memory costs several times what the copy does.
    """

    def __init__(self, comm: MPI.Comm, device: torch.device, cuda_aware: bool) -> None:
        self.comm, self.device = comm, device
        self.staged = device.type == "cuda" and not cuda_aware
        self.spare: list[Tensor] = []

    def send(self, vector: Tensor, rank: int) -> tuple[MPI.Request, object]:
        """A send begun, and what must stay alive until it is done."""
        vector = vector.detach()
        if self.staged:
            vector = torch.empty(vector.shape, pin_memory=True).copy_(vector)
        elif self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # MPI knows nothing of streams
        return self.comm.Isend([self._buffer(vector), MPI.FLOAT], rank, PAYLOAD), vector

    def receive(self, n: int, rank: int) -> tuple[MPI.Request, Tensor]:
        """A receive begun of n numbers, and where they will be; give that back to `spare` when nobody reads it any more."""
        fitting = (i for i, vector in enumerate(self.spare) if len(vector) == n)
        if (i := next(fitting, None)) is not None:
            vector = self.spare.pop(i)
        elif self.staged:
            vector = torch.empty(n, pin_memory=True)
        else:
            vector = torch.empty(n, device=self.device)
        if self.device.type == "cuda" and not self.staged:
            torch.cuda.current_stream(self.device).synchronize()  # kernels may still read the memory
        return self.comm.Irecv([self._buffer(vector), MPI.FLOAT], rank, PAYLOAD), vector

    def arrived(self, vector: Tensor) -> Tensor:
        """What was received, on the device."""
        return vector.to(self.device) if self.staged else vector

    def _buffer(self, vector: Tensor) -> object:
        return vector.numpy() if vector.device.type == "cpu" else vector


class Flight:
    """A step on its way: asked for, sent, being evaluated, arrived."""

    def __init__(self, transport: "Mpi", theta: Theta, tau: int) -> None:
        self.transport, self.theta, self.tau = transport, theta, tau
        self.drift: Drift | None = None

    def result(self) -> Drift:
        self.transport.await_(lambda: self.drift is not None)
        return self.drift


class Worker:
    """Rank 0's view of one worker: the flight it has, and the messages in between."""

    def __init__(self, rank: int) -> None:
        self.rank, self.flight, self.reply, self.grad, self.outgoing = rank, None, None, None, []
        self.header = np.empty(HEADER, np.uint8)


class Mpi:
    """The root's side: a parallel s over the other ranks of `comm`."""

    def __init__(self, comm: MPI.Comm, device: torch.device, stopped: Callable[[], bool], *, cuda_aware: bool = False) -> None:
        self.comm, self.stopped, self.busy = comm, stopped, Busy()
        self.wire = Wire(comm, device, cuda_aware)
        self.workers = [Worker(rank) for rank in range(1, comm.size)]
        self.queue: deque[Flight] = deque()

    def __call__(self, theta: Theta, tau: int) -> Flight:
        flight = Flight(self, theta, tau)
        self.queue.append(flight)
        self.progress()
        return flight

    def await_(self, done: Callable[[], bool]) -> None:
        """Keep the traffic moving until `done`. Raises Preempted, or the error that a worker reports."""
        def turn() -> bool:
            if self.asked():
                raise Preempted
            self.progress()
            return done()
        patiently(turn)

    def asked(self) -> bool:
        """Whether this rank or a worker has been told to leave."""
        return self.stopped() or self.comm.Iprobe(MPI.ANY_SOURCE, ALERT)

    def progress(self) -> None:
        """Take in what has arrived and hand out what waits, without waiting."""
        for worker in self.workers:
            if worker.grad is not None and worker.grad[0].Test():
                self._land(worker)
            elif worker.grad is None and worker.reply is not None and worker.reply.Test():
                self._open(worker)
            if worker.flight is None and self.queue:
                self._assign(worker, self.queue.popleft())

    def _assign(self, worker: Worker, flight: Flight) -> None:
        flat = flight.theta.flat
        header = pack(kind=TASK, tau=flight.tau, L=len(flat))
        worker.flight = flight
        worker.outgoing = [(self.comm.Isend(header, worker.rank, TASK), header), self.wire.send(flat, worker.rank)]
        worker.reply = self.comm.Irecv(worker.header, worker.rank, DRIFT)

    def _open(self, worker: Worker) -> None:
        record = unpack(worker.header)
        if record["kind"] == FAILURE:
            worker.flight = worker.reply = None
            raise (UserError if record["code"] == MISTAKE else RunError)(record["text"])
        self.busy.add(record["seconds"])
        worker.grad = (*self.wire.receive(record["D"], worker.rank), record)

    def _land(self, worker: Worker) -> None:
        _, vector, record = worker.grad
        MPI.Request.Waitall([request for request, _ in worker.outgoing])
        worker.flight.drift = drift = Drift(self.wire.arrived(vector), record["scalars"], record["seconds"])
        weakref.finalize(drift, self.wire.spare.append, vector)  # free again when the rollout has used the drift
        worker.flight = worker.reply = worker.grad = None
        worker.outgoing = []

    def close(self, code: int | None, grace: float = 60.0) -> None:
        """Let running evaluations end, then send every worker home with this exit code, or to the next stage with None;
        abort if some do not answer."""
        self.queue.clear()

        def settled() -> bool:
            try:
                self.progress()
            except (RunError, UserError):
                pass  # one failure has been told already
            return all(worker.flight is None for worker in self.workers)
        if not patiently(settled, perf_counter() + grace):
            late = [worker.rank for worker in self.workers if worker.flight is not None]
            print(f"mpiprop: ranks {late} did not answer for {grace:.0f} s; aborting", flush=True)
            self.comm.Abort(FAILED if code is None else code)
        header = pack(kind=STOP, code=code)
        requests = [self.comm.Isend(header, worker.rank, TASK) for worker in self.workers]
        patiently(lambda: MPI.Request.Testall(requests))
        while self.comm.Iprobe(MPI.ANY_SOURCE, ALERT):
            self.comm.Recv([bytearray(0), MPI.BYTE], MPI.ANY_SOURCE, ALERT)


def serve(comm: MPI.Comm, unit: Unit, layout: Layout, device: torch.device, stopped: Callable[[], bool], *,
          cuda_aware: bool = False) -> int | None:
    """A worker's life: evaluate what rank 0 sends until it says stop. Returns the exit code that comes with it, or None."""
    wire, header = Wire(comm, device, cuda_aware), np.empty(HEADER, np.uint8)
    alerts: list[MPI.Request] = []
    while True:
        request, arrived = comm.Irecv(header, 0, TASK), False
        while not arrived:
            if stopped() and not alerts:
                alerts.append(comm.Isend([bytearray(0), MPI.BYTE], 0, ALERT))
            arrived = patiently(request.Test, perf_counter() + 0.05)
        task = unpack(header)
        if task["kind"] == STOP:
            return task["code"]
        request, flat = wire.receive(task["L"], 0)
        patiently(request.Test)
        try:
            drift = unit(Theta(wire.arrived(flat), layout), task["tau"])
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
    code = MISTAKE if isinstance(error, UserError) else 1
    line = f"rank {comm.rank} on {socket.gethostname()}, {where}: {text}"[: HEADER // 8]  # up to 4 bytes a letter
    patiently(comm.Isend(pack(kind=FAILURE, code=code, text=line), 0, DRIFT).Test)
