"""An MPI communicator between threads of one process, for tests of the transport without a launcher.

A message is copied from the sender's memory when both sides are there, not before, as MPI does with long messages: whoever
changes what is being sent is found out. It has what mpiprop.transport uses and no more.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import mpi4py

mpi4py.rc.initialize = False  # constants and exceptions of MPI are all that is used

from mpi4py import MPI  # noqa: E402

from mpiprop.transport.world import World  # noqa: E402


NAMES = tuple(f"rank {i} on here" for i in range(99))


class Killed(BaseException):
    """Ends the thread of a rank as SIGKILL ends its process."""


class Dead(MPI.Exception):
    """What an operation raises that waits for a dead rank."""

    def __str__(self) -> str:
        return "process failed"


@dataclass(eq=False)
class Message:
    """One side of a message: a send or a receive."""

    sender: int
    receiver: int
    tag: int
    memory: memoryview
    fabric: "Fabric"
    peer: int
    done: bool = False

    def Test(self) -> bool:
        if not self.done and self.peer in self.fabric.dead:
            raise Dead(MPI.ERR_OTHER)
        return self.done


@dataclass
class Fabric:
    """What the ranks of one communicator share."""

    size: int
    lock: threading.RLock = field(default_factory=threading.RLock)
    sends: list[Message] = field(default_factory=list)
    receives: list[Message] = field(default_factory=list)
    delivered: Counter[tuple[int, int]] = field(default_factory=Counter)  # messages by receiver and tag
    dead: set[int] = field(default_factory=set)
    aborted: list[int] = field(default_factory=list)  # exit codes
    colours: dict[int, int] = field(default_factory=dict)
    groups: dict[int, "Fabric"] = field(default_factory=dict)  # by colour
    everybody: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.everybody = threading.Barrier(self.size)

    def members(self, colour: int) -> list[int]:
        """The ranks of a group."""
        return [rank for rank in range(self.size) if self.colours[rank] == colour]

    def bury(self, rank: int) -> None:
        """From now on this rank is dead, in its group, too."""
        self.dead.add(rank)
        for colour, group in self.groups.items():
            if rank in self.members(colour):
                group.bury(self.members(colour).index(rank))

    def match(self) -> None:
        """Copies every message that has both sides."""
        for send in list(self.sends):
            fitting = [receive for receive in self.receives
                       if (receive.sender, receive.receiver, receive.tag) == (send.sender, send.receiver, send.tag)]
            if fitting:
                fitting[0].memory[:len(send.memory)] = send.memory
                self.sends.remove(send)
                self.receives.remove(fitting[0])
                self.delivered[send.receiver, send.tag] += 1
                send.done = fitting[0].done = True


class Communicator:
    """One rank's view of a fabric."""

    def __init__(self, fabric: Fabric, rank: int) -> None:
        self.fabric, self.rank, self.size = fabric, rank, fabric.size

    def Isend(self, data: object, to: int, tag: int) -> Message:
        with self.fabric.lock:
            message = Message(self.rank, to, tag, _memory(data), self.fabric, to)
            self.fabric.sends.append(message)
            self.fabric.match()
        return message

    def Irecv(self, data: object, source: int, tag: int) -> Message:
        with self.fabric.lock:
            message = Message(source, self.rank, tag, _memory(data), self.fabric, source)
            self.fabric.receives.append(message)
            self.fabric.match()
        return message

    def Iprobe(self, source: int, tag: int) -> bool:
        with self.fabric.lock:
            return any((send.receiver, send.tag) == (self.rank, tag) for send in self.fabric.sends)

    def Recv(self, data: object, source: int, tag: int) -> None:
        with self.fabric.lock:
            send = next(send for send in self.fabric.sends if (send.receiver, send.tag) == (self.rank, tag))
            self.Irecv(data, send.sender, tag)

    def Split(self, colour: int) -> "Communicator | None":
        self.fabric.colours[self.rank] = colour
        self.fabric.everybody.wait()
        mine = self.fabric.members(colour)
        with self.fabric.lock:
            group = self.fabric.groups.setdefault(colour, Fabric(len(mine)))
        self.fabric.everybody.wait()
        return None if colour == MPI.UNDEFINED else Communicator(group, mine.index(self.rank))

    def Get_failed(self) -> SimpleNamespace:
        return SimpleNamespace(size=len(self.fabric.dead))

    def Ack_failed(self) -> None:
        pass

    def Abort(self, code: int) -> None:
        self.fabric.aborted.append(code)
        self.fabric.dead.update(range(self.size))
        raise Killed


def _memory(data: object) -> memoryview:
    view = memoryview(data[0] if isinstance(data, list) else data)
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def ranks(n: int, program: Callable[[World], object]) -> list:
    """What `program` returns on each of n ranks; None of one that was killed. Raises what it raises on any."""
    fabric, ends = Fabric(n), queue.Queue[tuple[int, object, BaseException | None]]()

    def one(rank: int) -> None:
        try:
            ends.put((rank, program(World(Communicator(fabric, rank), rank, n, NAMES[:n])), None))
        except (Killed, Dead) as end:
            fabric.bury(rank)
            ends.put((rank, None, None if isinstance(end, Killed) or fabric.aborted else end))
        except BaseException as error:
            ends.put((rank, None, error))
    for rank in range(n):
        threading.Thread(target=one, args=[rank], daemon=True).start()  # the others of one that fails are left behind
    found = {}
    while len(found) < n:
        rank, value, error = ends.get(timeout=60)
        if error is not None:
            raise error
        found[rank] = value
    return [found[rank] for rank in range(n)]


def until(done: Callable[[], bool], limit: float = 30) -> None:
    """Waits for something that another rank does."""
    end = time.monotonic() + limit
    while not done():
        assert time.monotonic() < end
        time.sleep(1e-3)
