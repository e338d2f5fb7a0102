"""What travels between ranks and what is carried from step to step, as values.

Letters: D trained numbers, L = D + the numbers that ride along with them (occupancy grids and the like), N points of a cloud
(0 where the shape is none), which may be others and more or fewer from one theta to the next.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from mpiprop.core import ancestry

POINTS = "geometry."  # where there are points, entries of such names have a row for each
MEASURED = 2  # numbers measured of each point while a gradient is evaluated


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
    N: int = 0

    @classmethod
    def of(cls, trained: Iterable[tuple[str, tuple[int, ...], str]], riding: Iterable[tuple[str, tuple[int, ...]]] = (),
           lanes: Mapping[str, int] | None = None, N: int = 0) -> "Layout":
        """The layout of (name, shape, group) trained entries, grouped contiguously, and (name, shape) riding ones, which no
        cloud of points has."""
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
        return cls(tuple(entries), D, offset, {group: n for group, n in (lanes or {}).items() if n > 1}, N)

    def of_points(self, N: int) -> "Layout":
        """The same for N points."""
        if N == self.N:
            return self
        return Layout.of([(e.name, (N, *e.shape[1:]) if e.name.startswith(POINTS) else e.shape, e.group)
                          for e in self.entries], lanes=self.lanes, N=N)

    def of_length(self, L: int) -> "Layout":
        """The same for as many points as L numbers are of."""
        if L == self.L:
            return self
        each = sum(e.numel // self.N for e in self.entries if e.name.startswith(POINTS))
        return self.of_points(self.N + (L - self.L) // each)

    def gather_points(self, flat: Tensor, rows: Tensor) -> Tensor:
        """Of `flat`, [D] and then any numbers of [N] each, or these alone, the same for the points `rows` [M]; zeros where a
        row is -1."""
        rows = rows.to(flat.device)
        absent, rows, head = rows < 0, rows.clamp(min=0), self.D if len(flat) >= self.D else 0

        def some(values: Tensor) -> Tensor:
            return values.index_select(0, rows).masked_fill_(absent.view(-1, *(1,) * (values.ndim - 1)), 0).reshape(-1)
        parts = [some(flat[e.span].view(e.shape)) if e.name.startswith(POINTS) else flat[e.span] for e in self.entries if head]
        return torch.cat(parts + [some(each) for each in flat[head:].view(-1, self.N)])

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
                           **({"lanes": self.lanes} if self.lanes else {}), **({"N": self.N} if self.N else {})})

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        record = json.loads(text)
        entries = tuple(Entry(name, tuple(shape), offset, group) for name, shape, offset, group in record["entries"])
        return cls(entries, record["D"], record["L"], record.get("lanes", {}), record.get("N", 0))


@dataclass(frozen=True)
class Theta:
    """One point of parameter space. Its numbers are never changed once it exists."""

    flat: Tensor  # [L] float32
    layout: Layout
    ancestry: Tensor | None = None  # [N, A] int64, on the CPU: the ids of each point and its ancestors (core.ancestry)

    @property
    def trained(self) -> Tensor:
        """The trained numbers [D]."""
        return self.flat[: self.layout.D]

    def rows(self, other: "Theta") -> Tensor | None:
        """For each point of `other` the row here that tells most of it (ancestry.rows); None where they have the same points,
        or are no clouds."""
        if self.ancestry is other.ancestry or torch.equal(self.ancestry[:, 0], other.ancestry[:, 0]):
            return None
        return ancestry.rows(other.ancestry, self.ancestry)

    def read_as(self, other: "Theta") -> "Theta":
        """This theta on the points of `other`, whose own numbers stand in for points not related to any here."""
        if (rows := self.rows(other)) is None:
            return self
        flat = self.layout.gather_points(self.flat, rows)
        known = self.layout.gather_points(torch.ones_like(self.flat), rows) if (rows < 0).any() else None
        return Theta(flat if known is None else torch.where(known > 0, flat, other.flat), other.layout, other.ancestry)


@dataclass(frozen=True)
class Drift:
    """s(theta_tau): the gradient of one step, and what it cost.

    In clouds of points the gradient is followed by what was measured of each point: how far the loss of each view wants it
    moved on the screen, summed over the views that see it [N], and how many those are [N]. Like the gradient it adds up
    over parts of a batch.
    """

    grad: Tensor  # [D + 2 N] float32
    scalars: Mapping[str, float] = field(default_factory=dict)  # losses by name, for the log only
    seconds: float = 0.0  # of evaluation, where it was evaluated

    def read_as(self, evaluated: Theta, wanted: Theta) -> "Drift":
        """The drift of `evaluated`, on the points of `wanted`; zero for points not related to any there."""
        rows = evaluated.rows(wanted)
        return self if rows is None else replace(self, grad=evaluated.layout.gather_points(self.grad, rows))


@dataclass(frozen=True)
class State:
    """x_tau: all that h-dagger needs to go on from step tau."""

    tau: int
    theta: Theta
    slots: Mapping[str, Tensor] = field(default_factory=dict)  # optimiser moments [D], statistics of points [2 N]

    def copy(self) -> "State":
        """The same state with moments of its own (thetas are immutable and shared)."""
        return State(self.tau, self.theta, {name: slot.clone() for name, slot in self.slots.items()})

    def read_as(self, theta: Theta) -> "State":
        """This state at `theta` instead: moments on its points."""
        rows = self.theta.rows(theta)
        return replace(self, theta=theta) if rows is None else replace(self, theta=theta, slots={
            name: self.theta.layout.gather_points(slot, rows) for name, slot in self.slots.items()})
