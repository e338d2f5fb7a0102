"""Keeps the newest window of a stage on disk: at intervals by a thread aside, while the workers go on, and at once at its end.

Nothing is copied for the thread: a window belongs to whoever holds it, and its tensors are never changed once it has been
yielded (each iteration works on a copy of its moments, thetas are never changed, drifts are in no window). h5py serves one
thread at a time; nobody else in the process uses it meanwhile.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from time import monotonic

from mpiprop.run import checkpoint
from mpiprop.run.checkpoint import Checkpoint
from mpiprop.picard.window import Window


class Keeper:
    """Saves windows of one stage to `path`, every `every_s` seconds."""

    def __init__(self, path: Path, stage: str, seed: int, config: str, every_s: float) -> None:
        self.path, self.stage, self.seed, self.config, self.every_s = path, stage, seed, config, every_s
        self.aside = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None
        self.begun = monotonic()

    def offer(self, window: Window) -> None:
        """Begin to write `window` aside if that is due and nothing else is being written.

        Raises RunError if the write before this one has failed.
        """
        if self.writing is not None and self.writing.done():
            written, self.writing = self.writing, None
            written.result()
        if self.writing is None and monotonic() - self.begun > self.every_s:
            self.begun = monotonic()
            self.writing = self.aside.submit(self.write, window)

    def save(self, window: Window, complete: bool = False) -> None:
        """Write `window`, after what is being written aside, and return when it is on disk. Raises RunError if it
        cannot be written."""
        if self.writing is not None:
            wait([self.writing])
            self.writing = None  # whatever became of it, this one is newer
        self.write(window, complete)

    def write(self, window: Window, complete: bool = False) -> None:
        """Write `window` in the calling thread."""
        checkpoint.save(self.path, Checkpoint(window, self.stage, self.seed, self.config, complete))
