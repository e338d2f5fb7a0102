"""What travels between ranks and what is carried from step to step, as values.

Letters: D trained numbers, L = D + the numbers that ride along with them (occupancy grids and the like).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """One named array inside a flat vector; `group` is its learning-rate group, empty for what rides along."""

    name: str
    shape: tuple[int, ...]
    offset: int
    group: str = ""

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.numel)


@dataclass(frozen=True)
class Layout:
    """How to read a flat vector: trained entries first, by group, then what rides along.

    A group may consist of n lanes, equal parts one after another, of which step tau advances number tau mod n alone.
    """

    entries: tuple[Entry, ...]
    D: int
    L: int
    lanes: Mapping[str, int] = field(default_factory=dict)  # n of each group that has more than one

    @classmethod
    def of(cls, trained: Iterable[tuple[str, tuple[int, ...], str]], riding: Iterable[tuple[str, tuple[int, ...]]] = (),
           lanes: Mapping[str, int] | None = None) -> "Layout":
        """The layout of (name, shape, group) trained entries, grouped contiguously, and (name, shape) riding ones."""
        trained = list(trained)
        order = {group: i for i, group in enumerate(dict.fromkeys(g for _, _, g in trained))}
        entries, offset = [], 0
        for name, shape, group in sorted(trained, key=lambda entry: order[entry[2]]):
            entries.append(Entry(name, tuple(shape), offset, group))
            offset += prod(shape)
        D = offset
        for name, shape in riding:
            entries.append(Entry(name, tuple(shape), offset))
            offset += prod(shape)
        return cls(tuple(entries), D, offset, {group: n for group, n in (lanes or {}).items() if n > 1})

    @property
    def groups(self) -> dict[str, slice]:
        """The contiguous span of each learning-rate group."""
        spans: dict[str, slice] = {}
        for entry in self.entries:
            if entry.group:
                start = spans[entry.group].start if entry.group in spans else entry.offset
                spans[entry.group] = slice(start, entry.span.stop)
        return spans

    def turns(self, group: str, tau: int) -> list[tuple[slice, int]]:
        """The span of each lane of a group and the number of steps before tau that advanced it; the one that step tau
        advances comes first."""
        span, n = self.groups[group], self.lanes.get(group, 1)
        length = (span.stop - span.start) // n
        starts = [span.start + (tau + i) % n * length for i in range(n)]
        return [(slice(start, start + length), (tau + i) // n) for i, start in enumerate(starts)]

    def admits(self, other: "Layout") -> bool:
        """Whether `other` is this layout but for sizes that are 0 here, to be found when a stage begins."""
        def names(layout: Layout) -> list[tuple[str, str, int]]:
            return [(entry.name, entry.group, len(entry.shape)) for entry in layout.entries]

        return self.lanes == other.lanes and names(self) == names(other) and all(
            mine in (0, n) for one, two in zip(self.entries, other.entries) for mine, n in zip(one.shape, two.shape))

    def name_at(self, index: int) -> str:
        """The name of the entry that holds flat[index]."""
        return next(entry.name for entry in self.entries if entry.span.start <= index < entry.span.stop)

    def to_json(self) -> str:
        return json.dumps({"D": self.D, "L": self.L, "entries": [[e.name, e.shape, e.offset, e.group] for e in self.entries],
                           **({"lanes": self.lanes} if self.lanes else {})})

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        record = json.loads(text)
        entries = tuple(Entry(name, tuple(shape), offset, group) for name, shape, offset, group in record["entries"])
        return cls(entries, record["D"], record["L"], record.get("lanes", {}))


@dataclass(frozen=True)
class Theta:
    """One point of parameter space. Its numbers are never changed once it exists."""

    flat: Tensor  # [L] float32
    layout: Layout

    @property
    def trained(self) -> Tensor:
        """The trained numbers [D]."""
        return self.flat[: self.layout.D]


@dataclass(frozen=True)
class Drift:
    """s(theta_tau): the gradient of one step, and what it cost."""

    grad: Tensor  # [D] float32
    scalars: Mapping[str, float] = field(default_factory=dict)  # losses by name, for the log only
    seconds: float = 0.0  # of evaluation, where it was evaluated


@dataclass(frozen=True)
class State:
    """x_tau: all that h-dagger needs to go on from step tau."""

    tau: int
    theta: Theta
    slots: Mapping[str, Tensor] = field(default_factory=dict)  # optimiser moments [D]

    def copy(self) -> "State":
        """The same state with moments of its own (thetas are immutable and shared)."""
        return State(self.tau, self.theta, {name: slot.clone() for name, slot in self.slots.items()})
