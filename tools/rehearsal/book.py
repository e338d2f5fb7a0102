"""What a section of the rehearsal finds, written down row by row, so that a section that is killed keeps its rows."""

import argparse
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch
from torch import Tensor

from mpiprop.core.memory import recycle_large_blocks
from mpiprop.transport.world import World


@dataclass
class Section:
    """What a section is given: where to work, on which device, for how long, and where to write."""

    work: Path
    rows: Path
    small: bool
    seconds: float
    begun: float = field(default_factory=monotonic)

    @classmethod
    def of(cls, doc: str | None) -> "Section":
        """From the command line."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--work", type=Path, required=True, help="folder of models, builds and runs")
        parser.add_argument("--rows", type=Path, required=True, help="file that a line of JSON is added to for each result")
        parser.add_argument("--small", action="store_true", help="on the CPU, with tiny models")
        parser.add_argument("--seconds", type=float, default=600.0, help="that the section may take")
        args = parser.parse_args()
        return cls(args.work, args.rows, args.small, args.seconds)

    @property
    def left(self) -> float:
        """Seconds that the section still has."""
        return self.seconds - (monotonic() - self.begun)

    def device(self) -> torch.device:
        """The device, set up as in a run; the CPU is asked for deterministic algorithms, too, which takes the same way."""
        if not self.small:
            return World().device("cuda")
        recycle_large_blocks()
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        return torch.device("cpu")

    def row(self, what: str, value: float | str | None = None, unit: str = "", *, ok: bool | None = None,
            limit: float | None = None, note: str = "", **more: Any) -> None:
        """Writes a result down: a number with its unit or a text; with `limit`, whether the number is at most that."""
        if limit is not None:
            ok = bool(value <= limit)
        record = {"what": what, "value": value, "unit": unit, "ok": ok, "limit": limit, "note": note, **more}
        with open(self.rows, "a", encoding="utf-8") as file:
            file.write(json.dumps({name: entry for name, entry in record.items() if entry not in (None, "")}) + "\n")
        print({True: "ok  ", False: "BAD ", None: "    "}[ok], what, shown(value), unit, note, flush=True)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What goes wrong inside becomes a row, and the section goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            first = next(iter(str(error).strip().splitlines()), "")
            self.row(what, ok=False, note=f"{type(error).__name__}: {first}"[:300])


def shown(value: float | str | None) -> str:
    """A value as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def timed(work: Callable[[], object], device: torch.device, runs: int = 3) -> float:
    """Seconds of one call, the median of some; the device has finished before and after."""
    seconds = []
    for _ in range(runs):
        wait(device)
        start = perf_counter()
        work()
        wait(device)
        seconds.append(perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fresh_peak(device: torch.device) -> None:
    """Starts to look for the largest memory in use anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """GB of tensors on the device at most since then; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def apart(found: Tensor, truth: Tensor) -> float:
    """|found - truth| / |truth| (|found| where the truth is zero), in float64 on the CPU; infinite where a number is not finite
    or shapes differ."""
    found, truth = found.detach().double().cpu(), truth.detach().double().cpu()
    if found.shape != truth.shape or not found.isfinite().all():
        return float("inf")
    return float((found - truth).norm() / (truth.norm() if truth.any() else 1.0))


def largest(found: Tensor, truth: Tensor) -> float:
    """The largest difference of two numbers."""
    found, truth = found.detach().double().cpu(), truth.detach().double().cpu()
    if found.shape != truth.shape or not found.isfinite().all():
        return float("inf")
    return float((found - truth).abs().max()) if found.numel() else 0.0


def environment(work: Path) -> Mapping[str, str]:
    """Of the processes that a section starts: what was installed for the rehearsal comes first, nothing asks the network."""
    root = Path(__file__).resolve().parents[2]
    lines = (root / "tools" / "mpi.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    own = work / "venv"
    paths = [*([str(own / "bin")] if own.is_dir() else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    launcher = shutil.which("mpirun", path=os.pathsep.join(paths))
    library = [*(Path(launcher).parents[1] / "lib").glob("libmpi.so.*")] if launcher else []  # a wheel's, for mpi4py to find
    found = {"MPI4PY_LIBMPI": str(library[0])} if library else {}
    return settings | found | os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])), "PATH": os.pathsep.join(paths),
        "TORCH_EXTENSIONS_DIR": str(work / "extensions"), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
