"""The values that travel between ranks and from step to step: layouts, parameters, gradients and states.

Letters: D trained numbers, L = D + the numbers that are stored with them but not trained (occupancy grids and the like), N
points of a cloud (0 where there is none). N may differ from one theta to the next.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from mpiprop.core import ancestry, memory


@dataclass(frozen=True)
class Entry:
    """One named array inside a flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    group: str = ""  # learning-rate group; empty for what is not trained
    per_point: bool = False  # whether the first axis counts the points of a cloud

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.numel)


@dataclass(frozen=True)
class Layout:
    """How to read a flat vector: trained entries first, group by group, then the entries that are not trained.

    A group may consist of n lanes, equal parts one after another, of which step tau advances lane tau mod n alone.
    """

    entries: tuple[Entry, ...]
    D: int
    L: int
    lanes: Mapping[str, int] = field(default_factory=dict)  # n of each group that has more than one
    N: int = 0

    @classmethod
    def of(cls, trained: Iterable[tuple[str, tuple[int, ...], str]], riding: Iterable[tuple[str, tuple[int, ...]]] = (),
           lanes: Mapping[str, int] | None = None, per_point: Collection[str] = ()) -> "Layout":
        """Lay out arrays one after another, those of a group side by side.

        trained: name, shape and group of each trained array
        riding: name and shape of each array that is not trained
        lanes: number of lanes of each group that has more than one
        per_point: names of the arrays that have one row for each point of a cloud
        """
        trained = list(trained)
        order = {group: i for i, group in enumerate(dict.fromkeys(group for *_, group in trained))}
        entries: list[Entry] = []
        offset = 0
        for name, shape, group in (*sorted(trained, key=lambda entry: order[entry[2]]),
                                   *((name, shape, "") for name, shape in riding)):
            entries.append(Entry(name, tuple(shape), offset, group, name in per_point))
            offset += prod(shape)
        D = sum(entry.numel for entry in entries if entry.group)
        N = next((entry.shape[0] for entry in entries if entry.per_point), 0)
        return cls(tuple(entries), D, offset, {group: n for group, n in (lanes or {}).items() if n > 1}, N)

    def of_points(self, N: int) -> "Layout":
        """The same layout for N points."""
        if N == self.N:
            return self
        shapes = [(N, *entry.shape[1:]) if entry.per_point else entry.shape for entry in self.entries]
        return Layout.of([(e.name, shape, e.group) for e, shape in zip(self.entries, shapes) if e.group],
                         [(e.name, shape) for e, shape in zip(self.entries, shapes) if not e.group],
                         self.lanes, {entry.name for entry in self.entries if entry.per_point})

    def of_length(self, L: int) -> "Layout":
        """The same layout for the number of points that makes a vector L numbers long."""
        if L == self.L:
            return self
        each = sum(prod(entry.shape[1:]) for entry in self.entries if entry.per_point)
        return self.of_points(self.N + (L - self.L) // each)

    def gather_points(self, flat: Tensor, rows: Tensor) -> Tensor:
        """Gather the given point rows of a vector [D] of trained numbers, moments or gradients.

        rows: [M], indices of points; rows of -1 give zeros
        Returns a vector for M points; numbers that belong to no point are copied.
        """
        return torch.cat([gather_rows(flat[entry.span].view(entry.shape), rows).reshape(-1) if entry.per_point
                          else flat[entry.span] for entry in self.entries if entry.group])

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
        per_point = [entry.name for entry in self.entries if entry.per_point]
        return json.dumps({"D": self.D, "L": self.L, "entries": [[e.name, e.shape, e.offset, e.group] for e in self.entries],
                           **({"lanes": self.lanes} if self.lanes else {}),
                           **({"N": self.N, "per_point": per_point} if per_point else {})})

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        record = json.loads(text)
        N = record.get("N", 0)
        per_point = record.get("per_point")
        if per_point is None:  # version 0.1.0 did not write it: in a cloud all arrays of the geometry had a row for each point
            per_point = [name for name, *_ in record["entries"] if N and name.startswith("geometry.")]
        entries = tuple(Entry(name, tuple(shape), offset, group, name in per_point)
                        for name, shape, offset, group in record["entries"])
        return cls(entries, record["D"], record["L"], record.get("lanes", {}), N)


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Gather rows [M] of values [N, ...]; rows of -1 give zeros."""
    rows = rows.to(values.device)
    absent = (rows < 0).view(-1, *(1,) * (values.ndim - 1))
    return values.index_select(0, rows.clamp(min=0)).masked_fill_(absent, 0)


@dataclass(frozen=True)
class Theta:
    """One point of parameter space. Its tensors are shared and never changed. Raises ValueError where they do not fit the
    layout."""

    flat: Tensor  # [L] float32
    layout: Layout
    ancestry: Tensor | None = None  # [N, A] int64, on the CPU: the ids of each point and its ancestors (core.ancestry)

    def __post_init__(self) -> None:
        if self.flat.shape != (self.layout.L,) or self.ancestry is not None and len(self.ancestry) != self.layout.N:
            raise ValueError(f"theta {tuple(self.flat.shape)}: its layout has L = {self.layout.L}, N = {self.layout.N}")

    @property
    def trained(self) -> Tensor:
        """The trained numbers [D]."""
        return self.flat[: self.layout.D]

    def rows(self, other: "Theta") -> Tensor | None:
        """For each point of `other` the row of its nearest relative here (core.ancestry.rows); None where both have the same
        points, or none."""
        if self.ancestry is None or other.ancestry is None or self.ancestry is other.ancestry:
            return None
        if torch.equal(self.ancestry[:, 0], other.ancestry[:, 0]):
            return None
        return ancestry.rows(other.ancestry, self.ancestry)

    def gather_points(self, rows: Tensor, ids: Tensor | None) -> "Theta":
        """The theta of these point rows [M], whose ancestries are `ids` [M, A]; rows of -1 give zeros."""
        flat = torch.cat([self.layout.gather_points(self.trained, rows), self.flat[self.layout.D:]])
        return Theta(flat, self.layout.of_points(len(rows)), ids)

    def read_as(self, other: "Theta") -> "Theta":
        """This theta on the points of `other`; points without a relative here keep the numbers of `other`."""
        if (rows := self.rows(other)) is None:
            return self
        found = self.gather_points(rows, other.ancestry)
        if (rows < 0).any():
            known = replace(self, flat=torch.ones_like(self.flat)).gather_points(rows, other.ancestry)
            found = replace(found, flat=torch.where(known.flat > 0, found.flat, other.flat))
        return found


@dataclass(frozen=True)
class Drift:
    """s(theta_tau): the gradient of one step, what was measured on the way, and what it cost.

    Gradients, statistics, sums and scalars of the parts of a batch add up to those of the batch.
    """

    grad: Tensor  # [D] float32
    scalars: Mapping[str, float] = field(default_factory=dict)  # losses by name, for the log only
    seconds: float = 0.0  # of evaluation, where it was evaluated
    statistics: Mapping[str, Tensor] = field(default_factory=dict)  # [N] each: measurements of the points of a cloud
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Measurements of the whole batch: a few hundred float32 numbers in all, on the CPU, in memory of their own."""

    def clone(self) -> "Drift":
        """The same drift in memory of its own."""
        return replace(self, grad=self.grad.clone(), statistics={name: values.clone() for name, values
                                                                 in self.statistics.items()})

    def read_as(self, evaluated: Theta, wanted: Theta) -> "Drift":
        """The drift at `evaluated`, on the points of `wanted`; zero for points without a relative."""
        if (rows := evaluated.rows(wanted)) is None:
            return self
        return replace(self, grad=evaluated.layout.gather_points(self.grad, rows),
                       statistics={name: gather_rows(values, rows) for name, values in self.statistics.items()})


@dataclass(frozen=True)
class State:
    """x_tau: everything that h_dagger needs to go on from step tau."""

    tau: int
    theta: Theta
    slots: Mapping[str, Tensor] = field(default_factory=dict)  # [D] each: moments of the optimiser
    statistics: Mapping[str, Tensor] = field(default_factory=dict)  # [N] each: sums of the drifts' statistics
    averages: Mapping[str, Tensor] = field(default_factory=dict)  # running averages of the drifts' sums, on the CPU

    def copy(self) -> "State":
        """The same state with moments of its own; everything else is never changed, and shared."""
        return replace(self, slots={name: memory.copy(slot) for name, slot in self.slots.items()})

    def gather_points(self, theta: Theta, rows: Tensor) -> "State":
        """This state at `theta`, whose points are the rows [M] of this one's; rows of -1 begin with zeros."""
        return replace(self, theta=theta,
                       slots={name: self.theta.layout.gather_points(slot, rows) for name, slot in self.slots.items()},
                       statistics={name: gather_rows(values, rows) for name, values in self.statistics.items()})

    def read_as(self, theta: Theta) -> "State":
        """This state at `theta` instead: moments and statistics on its points."""
        rows = self.theta.rows(theta)
        return replace(self, theta=theta) if rows is None else self.gather_points(theta, rows)
