"""The other ranks' side of the MPI transport: evaluate what rank 0 sends, until it says stop."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from mpiprop.core.errors import RunError, UserError, exit_code
from mpiprop.core.theta import Drift, Layout, Theta
from mpiprop.transport.base import End, patiently
from mpiprop.transport.buffers import Wire
from mpiprop.transport.messages import ALERT, DRIFT, FAILURE, HEADER, STOP, TASK, pack, pack_drift, unpack

GLANCE = 0.05  # seconds between two looks at whether this rank has been told to leave


def serve(comm: Any, unit: Callable[..., Drift], layout: Layout, device: torch.device, stopped: Callable[[], bool], *,
          cuda_aware: bool = False, name: str = "a worker", alerts_to: Any = None) -> End:
    """Serve rank 0 of `comm` until stopped; return the stop message.

    unit: evaluates theta at tau, or a part of it where rank 0 asks for one
    layout: that of theta, for any number of points
    stopped: whether this rank has been told to leave
    name: what this rank is called in messages
    alerts_to: communicator whose rank 0 hears that this rank has been told to leave (default: `comm`)
    Raises MPI.Exception where rank 0 dies.
    """
    wire, header, alerts = Wire(comm, device, cuda_aware), np.empty(HEADER, np.uint8), list[Any]()

    def wait(done: Callable[[], bool]) -> None:
        while True:
            if stopped() and not alerts:  # looked at before every wait: where steps are quick, none lasts for GLANCE
                alerts.append((comm if alerts_to is None else alerts_to).Isend([bytearray(0), MPI.BYTE], 0, ALERT))
            if patiently(done, perf_counter() + GLANCE):
                return

    def evaluate(task: Mapping[str, Any]) -> None:
        receive, flat = wire.receive(task["L"], 0)
        wait(receive.Test)
        try:
            theta = Theta(wire.arrived(flat), layout.of_length(task["L"]))
            record, vector = pack_drift(unit(theta, task["tau"], *task["part"]))
            reply = pack(kind=DRIFT, tau=task["tau"], **record)
        except Exception as error:
            text = str(error) if isinstance(error, (UserError, RunError)) else f"{type(error).__name__}: {error}"
            line = f"{name}, step {task['tau']}: {text}"[: HEADER // 8]  # up to 4 bytes a letter
            wait(comm.Isend(pack(kind=FAILURE, code=exit_code(error), text=line), 0, DRIFT).Test)
        else:
            sends = [(comm.Isend(reply, 0, DRIFT), reply), wire.send(vector, 0)]
            wait(lambda: all(send.Test() for send, _ in sends))

    while True:
        wait(comm.Irecv(header, 0, TASK).Test)
        task = unpack(header)
        if task["kind"] == STOP:
            return End(task["code"], task["shrink"])
        evaluate(task)
