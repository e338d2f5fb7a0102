"""Predicts time, memory and traffic of a stage for each way to spread it over ranks.

Letters as in DreamPropeller (arXiv 2311.17082, section 4): T steps, K iterations, p the window's size. Also: G groups of b
ranks ("shards") evaluate one step each; D trained numbers; L = D + the numbers that are stored but not trained. This is
arithmetic on measurements and on the constants of constants.py; nothing is run. tools/README.md, "Planning a run", derives the
laws.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from mpiprop.planning.constants import FIXED, FITS

FLOAT = 4  # bytes of a number
SHOWN = 12  # most rows of a table
TIMES = {"h": 3600.0, "min": 60.0, "s": 1.0}
SIZES = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


@dataclass(frozen=True)
class Work:
    """The size of a stage."""

    name: str
    T: int
    batches: tuple[int, ...]  # views a step, of each term
    D: int
    L: int
    slots: int = 2  # moments of the optimiser
    weights: int = 0  # bytes of the prior, on ranks that evaluate

    @property
    def message(self) -> int:
        """Bytes that one evaluation sends over a link: a theta to the worker, a gradient back."""
        return FLOAT * (self.L + self.D)

    def part(self, b: int) -> int:
        """The views in the largest of b parts of a batch."""
        return sum(ceil(batch / b) for batch in self.batches)


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of an iteration take."""

    evaluate: float  # a whole batch on one device
    rollout: float = 0.0  # an optimiser step
    byte: float = 0.0  # a byte on a link
    fixed: float = FIXED  # share of an evaluation that does not depend on the number of views

    def evaluation(self, work: Work, b: int = 1) -> float:
        """Seconds of one evaluation by b ranks: of the largest part, and of the messages within the group."""
        share = self.fixed + (1 - self.fixed) * work.part(b) / work.part(1)
        return self.evaluate * share + (b - 1) * work.message * self.byte

    def scaled(self, then: Work, now: Work) -> "Costs":
        """The costs of another batch and another number of trained numbers."""
        share = self.fixed + (1 - self.fixed) * now.part(1) / then.part(1)
        return replace(self, evaluate=self.evaluate * share, rollout=self.rollout * now.D / then.D)


@dataclass(frozen=True)
class Law:
    """T/K of a window: 1 + x / (1 + (x / limit)^3)^(1/3), x = reach (p - 1) the steps that an iteration gains at best."""

    reach: float = 1.0
    limit: float = inf  # steps gained by an endless window

    def __call__(self, p: int) -> float:
        x = self.reach * (p - 1)
        return 1 + (x / (1 + (x / self.limit) ** 3) ** (1 / 3) if self.limit else 0.0)

    @classmethod
    def of(cls, threshold: float | str, predict: str) -> "Law":
        """The law of a rule for e before anything was measured."""
        fit = FITS[predict if threshold == "auto" else "paper" if threshold else "exact"]
        return cls(fit.reach, fit.limit)

    def through(self, p: int, ratio: float) -> "Law":
        """The law that gives a window of p > 1 this T/K: with another limit, or another reach where there is no limit."""
        x, gained = self.reach * (p - 1), max(0.0, ratio - 1)
        if self.limit == inf or gained >= x:
            return Law(min(1.0, gained / (p - 1)))
        return replace(self, limit=gained and x / ((x / gained) ** 3 - 1) ** (1 / 3))


@dataclass(frozen=True)
class Choice:
    """One way to run a stage, and what is predicted of it. Memory counts vectors of D and L numbers, and the prior."""

    ranks: int
    size: int
    shards: int
    ratio: float  # T/K
    seconds: float
    speedup: float  # over one rank that takes step after step
    evaluate: float  # share of the time, as are the next two
    rollout: float
    transport: float
    root_bytes: int
    worker_bytes: int
    root_bytes_per_s: float  # through rank 0's link, both ways together


def rounds(p: int, groups: int, ratio: float) -> float:
    """Evaluations one after another in a slide of p slots.

    Where nearly all steps are accepted, these are whole turns of the groups. After an early error, groups that are free begin
    the next slide.
    """
    turns = ceil(p / groups)
    return p / groups + ratio / p * (turns - p / groups)


def sequential(work: Work, costs: Costs) -> Choice:
    """The baseline: one rank that takes one step after another."""
    step = costs.evaluation(work) + costs.rollout
    return Choice(1, 1, 1, 1.0, work.T * step, 1.0, 1 - costs.rollout / step, costs.rollout / step, 0.0,
                  root_bytes(work, 1) + work.weights, 0, 0.0)


def predict(work: Work, costs: Costs, law: Law, size: int, groups: int, shards: int) -> Choice:
    """A window of `size` on `groups` groups of `shards` ranks."""
    ratio = law(size)
    evaluate = rounds(size, groups, ratio) * costs.evaluation(work, shards)
    rollout, transport = size * costs.rollout, size * work.message * costs.byte
    slide = evaluate + rollout + transport
    seconds = work.T / ratio * slide
    return Choice(1 + groups * shards, size, shards, ratio, seconds, sequential(work, costs).seconds / seconds,
                  evaluate / slide, rollout / slide, transport / slide, root_bytes(work, size), worker_bytes(work, shards),
                  size * work.message / slide)


def choices(work: Work, costs: Costs, law: Law, ranks: int) -> list[Choice]:
    """All choices that `ranks` ranks allow and the sequential one, the fastest first; of equals, that of fewest ranks."""
    ways = {(p, groups, b) for b in _shards(work, ranks - 1) for groups in _halves((ranks - 1) // b)
            for p in (groups, ceil(1.5 * groups)) if groups * b > 1 and p <= work.T}
    found = [sequential(work, costs), *(predict(work, costs, law, *way) for way in sorted(ways))]
    return sorted(found, key=lambda choice: (choice.seconds, choice.ranks))


def observe(records: Sequence[Mapping], work: Work, size: int, shards: int, ranks: int, fixed: float,
            law: Law) -> tuple[Costs, Law]:
    """Costs and law of a stage that ran on so many ranks.

    records: its slides in metrics.jsonl. The first, which includes reading weights, counts only where it is the only one
    A run on one rank says nothing about messages: `byte` is then 0.
    """
    slides = records[1:] or records
    ratio = records[-1]["tau"] / records[-1]["k"]
    evaluations = sum(slide.get("evaluations", len(slide["errors"])) for slide in slides)
    total = {part: sum(slide[part] for slide in slides) for part in ("evaluate_s", "rollout_s", "transport_s")}
    byte, turns = 0.0, float(evaluations)
    if ranks > 1:
        byte = total["transport_s"] / (max(1, evaluations) * work.message)
        groups = ceil((ranks - 1) / shards)
        turns = sum(rounds(p := len(slide["errors"]), groups, min(ratio, p)) for slide in slides)
    b = shards if ranks > 1 else 1
    unit = Costs(1.0, fixed=fixed).evaluation(work, b)
    evaluate = max(0.0, total["evaluate_s"] / max(1.0, turns) - (b - 1) * work.message * byte) / unit
    steps = sum(len(slide["errors"]) for slide in slides)
    return Costs(evaluate, total["rollout_s"] / steps, byte, fixed), law.through(size, ratio) if size > 1 else law


def worthwhile(found: Sequence[Choice]) -> list[Choice]:
    """The choices that no choice of as few ranks beats, of all, the fastest first: what more ranks gain at best."""
    kept: list[Choice] = []
    for choice in found:
        if not kept or choice.ranks < kept[-1].ranks:
            kept.append(choice)
    return kept


def table(found: Sequence[Choice], slow: Sequence[Choice] = (), fast: Sequence[Choice] = ()) -> str:
    """The worthwhile choices as an aligned table, the best one marked; the sequential one is always shown.

    Where times are not known, pass the same choices predicted for `slow` and `fast` evaluations: the table then shows the range
    of the speed-up instead of times.
    """
    kept = worthwhile(found)
    shown = [choice for i, choice in enumerate(kept) if i < SHOWN or choice.ranks == 1]
    ends = [{_way(choice): choice.speedup for choice in end} for end in (slow, fast)]
    time, per = _unit([choice.seconds for choice in shown], TIMES)
    memory, byte = _unit([choice.root_bytes for choice in shown] + [choice.worker_bytes for choice in shown], SIZES)
    traffic, rate = _unit([choice.root_bytes_per_s for choice in shown], SIZES)
    rows = [["", "ranks", "window.size", "window.shards", "T/K", "speed-up", "speed-up/rank",
             "evaluate", "rollout", "transport", f"rank 0 ({memory})", f"worker ({memory})",
             f"rank 0 ({traffic}/s)", f"time ({time})"]]
    for choice in shown:
        gains = sorted(end[_way(choice)] for end in ends if end) or [choice.speedup]
        rows.append([
            "best" if choice is found[0] else "sequential" if choice.ranks == 1 else "", str(choice.ranks), str(choice.size),
            str(choice.shards), f"{choice.ratio:.2f}", "-".join(dict.fromkeys(f"{gain:.2f}" for gain in gains)),
            "-".join(dict.fromkeys(f"{gain / choice.ranks:.0%}" for gain in gains)),
            *(f"{share:.0%}" for share in (choice.evaluate, choice.rollout, choice.transport)),
            _short(choice.root_bytes / byte), _short(choice.worker_bytes / byte) if choice.ranks > 1 else "-",
            _short(choice.root_bytes_per_s / rate), _short(choice.seconds / per)])
    if slow:  # shares of the time, traffic and times would be made up
        rows = [row[:7] + row[10:12] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    if left := len(found) - len(shown):
        lines.append(f"({left} more gain nothing over these, or come after the first {SHOWN}: --json)")
    return "\n".join(lines)


def _way(choice: Choice) -> tuple[int, int, int]:
    return choice.ranks, choice.size, choice.shards


def _unit(values: Sequence[float], units: Mapping[str, float]) -> tuple[str, float]:
    """The first of descending units in which the largest value is at least 1, and its size."""
    return next(((name, unit) for name, unit in units.items() if max(values) >= unit), list(units.items())[-1])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _shards(work: Work, workers: int) -> Iterator[int]:
    """Numbers of parts up to `workers`, each the smallest that makes the largest part smaller."""
    least = inf
    for b in range(1, min(workers, max(work.batches)) + 1):
        if work.part(b) < least:
            least = work.part(b)
            yield b


def _halves(n: int) -> Iterator[int]:
    while n:
        yield n
        n //= 2


def root_bytes(work: Work, p: int) -> int:
    """Memory of rank 0: thetas of this iteration and the next, two gradients, moments before and after the rollout, and the
    scene with its gradient."""
    return FLOAT * ((2 * p + 2) * work.L + (2 + 2 * work.slots) * work.D + work.L + work.D)


def worker_bytes(work: Work, b: int) -> int:
    """Memory of the first rank of a group: the prior, theta and gradient; with b > 1 also the gradients of the other parts."""
    return work.weights + FLOAT * (work.L + work.D + (b * work.D if b > 1 else 0))
