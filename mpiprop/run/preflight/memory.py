"""Compares the memory that each rank has with an estimate of what it will need.

The sizes of theta's vectors, of priors' weights and of result grids are known. The rest of an evaluation is estimated with
constants that were measured on the demos (tools/README.md, "What a run needs").
"""

import resource
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mpiprop.config.components import out_of_memory
from mpiprop.core.errors import UserError

CGROUPS = Path("/sys/fs/cgroup")
CLOSE, FAR = 0.85, 3  # estimates of so many times what there is are warned of, and refused


@dataclass(frozen=True)
class Pool:
    """Memory that several ranks may share: that of a host, of a control group on it, or of a GPU."""

    name: str  # the same on every rank that shares it
    free: int  # bytes


@dataclass
class Need:
    """Bytes that one rank will need, by the key that lowers them."""

    known: dict[str, float] = field(default_factory=dict)  # at least
    guessed: dict[str, float] = field(default_factory=dict)  # on top

    @property
    def least(self) -> float:
        return sum(self.known.values())

    @property
    def likely(self) -> float:
        return self.least + sum(self.guessed.values())

    def most_from(self) -> str:
        """The key of the largest part."""
        parts = self.known | {name: self.known.get(name, 0) + size for name, size in self.guessed.items()}
        return max(parts, key=parts.__getitem__)


def host(root: Path = CGROUPS, meminfo: Path = Path("/proc/meminfo"), own: Path = Path("/proc/self/cgroup")) -> Pool:
    """The memory of this host, or of the tightest control group of this process (of a container or a Slurm job)."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    found = [Pool(socket.gethostname(), int(lines["MemAvailable"].split()[0]) * 1024)]
    return min([*found, *_groups(root, own)], key=lambda pool: pool.free)


def _groups(root: Path, own: Path) -> Iterator[Pool]:
    """The control groups of this process that have a limit, in either version of the interface."""
    v1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    v2 = "memory.max", "memory.current", "inactive_file"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, names = (root / "memory", v1) if controllers else (root, v2)
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(base) and (pool := _group(folder, *names)):
                yield pool


def _group(folder: Path, limit: str, usage: str, cache: str) -> Pool | None:
    """The memory left in one control group: its limit less what is used and cannot be dropped; None without a limit."""
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, usage))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if most == "max" or int(most) > 1 << 60:
            return None
        return Pool(f"{socket.gethostname()}, limited by {folder}", max(0, int(most) - int(used) + int(stat.get(cache, 0))))
    except (OSError, ValueError):
        return None


def gpu(device: torch.device) -> Pool:
    """The memory of this rank's GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return Pool(f"GPU {torch.cuda.get_device_properties(device).uuid} of {socket.gethostname()}", free)


@contextmanager
def bounded(path: str, count: float | None) -> Iterator[None]:
    """Limit what this process allocates inside to `count` bytes; None: no limit.

    Pass None in a process that uses a GPU, whose driver reserves more addresses than there is memory.
    Raises UserError, which begins with `path`, for what does not fit.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    if count is not None:
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + int(count)
        most = most if before[0] == resource.RLIM_INFINITY else min(most, before[0])
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"{path}: does not fit into the memory here; lower its sizes") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def judge(pools: Sequence[Mapping[str, Pool]], needs: Sequence[Mapping[str, Need]]) -> tuple[list[str], list[str]]:
    """Lines about needs that cannot fit, and about those that may not.

    pools, needs: of each rank, by kind of memory ("host", "gpu")
    """
    sharing: dict[str, list[tuple[int, Pool, Need]]] = defaultdict(list)
    for rank, (there, wanted) in enumerate(zip(pools, needs)):
        for kind, need in wanted.items():
            sharing[there[kind].name].append((rank, there[kind], need))
    impossible, tight = [], []
    for name, ranks in sharing.items():
        free = min(pool.free for _, pool, _ in ranks)
        least, likely = sum(need.least for *_, need in ranks), sum(need.likely for *_, need in ranks)
        worst = max((need for *_, need in ranks), key=lambda need: need.likely)
        who = f"{len(ranks)} ranks" if len(ranks) > 1 else f"rank {ranks[0][0]}"
        if least > free or likely > FAR * free:
            took = f"at least {size(least)}" if least > free else f"about {size(likely)} (an estimate)"
            impossible.append(f"memory of {name}: {who} would take {took}, and {size(free)} are free; lower "
                              f"{worst.most_from()}" + (", or take more hosts" if len(ranks) > 2 else ""))
        elif likely > CLOSE * free:
            tight.append(f"memory of {name}: {who} may take {size(likely)} (an estimate), and {size(free)} are free; if that "
                         f"is not enough, lower {worst.most_from()}")
    return impossible, tight


def size(count: float) -> str:
    """A number of bytes with a unit: 3.1 MB, 47 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 999.5 else f"{count:,.0f} TB"
