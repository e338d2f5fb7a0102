"""What the run says while it runs: one progress line, run.log (every line with time and rank), metrics.jsonl, status."""

import json
from contextlib import suppress
from pathlib import Path
from time import monotonic, strftime

from mpiprop.core.console import CLEAR, on_terminal, put, tell, terminal
from mpiprop.core.errors import RunError


class Log:
    """The console and the files of a run folder; other ranks than 0 keep quiet."""

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self.rank, self.tty, self.drawn, self.noted, self.stated = rank, on_terminal(), -1e9, -1e9, -1e9
        self.folder = folder
        self.log = open(folder / "run.log", "a", buffering=1) if folder else None
        self.metrics = folder / "metrics.jsonl" if folder else None
        with suppress(OSError):  # `top` and py-spy tell the ranks apart, where the system has this file
            Path("/proc/self/comm").write_text(f"mpiprop {rank}")

    def say(self, line: str, *, error: bool = False) -> None:
        """A line for the console and for run.log."""
        if self.rank == 0:
            self._clear()
            put(f"{line}\n", error)
        self.note(line)

    def parting(self, line: str) -> None:
        """Print the last lines of a run that was asked to leave. On a terminal they are written past mpirun, which
        loses the output of its ranks once it has been told to end them."""
        if self.rank == 0 and terminal():
            tell(f"{CLEAR}{line}")
            self.note(line)
        else:
            self.say(line)

    def progress(self, line: str, *, last: bool = False) -> None:
        """The progress line: redrawn in place on a terminal, every 10 seconds elsewhere and in run.log."""
        now = monotonic()
        if last or now - self.drawn > (0.2 if self.tty else 10):
            self.drawn = now
            put((CLEAR if self.tty else "") + line + ("\n" if last or not self.tty else ""))
        if last or now - self.noted > 10:
            self.noted = now
            self.note(line)

    def status(self, line: str, *, seldom: bool = False) -> None:
        """The one line of the file `status`, replaced in one piece; `seldom`: at most every 3 seconds."""
        if seldom and monotonic() - self.stated < 3:
            return
        self.stated, part = monotonic(), self.folder / ".status.part"
        with suppress(OSError):  # a full disk is told by what cannot be done without
            part.write_text(f"{line}\n")
            part.replace(self.folder / "status")

    def record(self, **values: object) -> None:
        """One line of metrics.jsonl."""
        try:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise RunError(f"{self.metrics}: cannot be written: {error.strerror}; make room, run again with --resume") from None

    def rewind(self, stage: str, k: int) -> None:
        """Forget the metrics of `stage` after iteration k: a resumed run writes them anew."""
        if not self.metrics.exists():
            return
        kept, passed = [], False
        for line in self.metrics.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line that a kill cut short
            passed = record["stage"] == stage and record["k"] > k
            if passed:
                break
            kept.append(line + "\n")
        part = self.metrics.with_suffix(".part")
        part.write_text("".join(kept))
        part.replace(self.metrics)

    def note(self, line: str) -> None:
        """A line for run.log alone, or several."""
        if self.log:
            stamp = f"{strftime('%Y-%m-%d %H:%M:%S')} rank {self.rank}: "
            try:
                self.log.write("".join(f"{stamp}{part}\n" for part in line.splitlines()))
            except OSError:
                self.log = None  # a full disk must not hide what is being said

    def _clear(self) -> None:
        if self.tty:
            put(CLEAR)
