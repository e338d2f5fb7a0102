"""The encoded texts of many prompts on disk: written once by all ranks together, read by any rank when a view needs one.

    FOLDER/KEY/0.h5, 1.h5, ...   BLOCK texts each: embeddings [n, N, E], a chunk for each text, and ends [n]

KEY names the texts and what encodes them, so that others are never taken for these. A file is written beside its place and
renamed: one that is there is whole, and a writer that was killed goes on with the next.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpiprop.core.errors import RunError, UserError
from mpiprop.priors.base import Prior

BLOCK = 512  # texts a file; their embeddings are in memory at once while they are written
OPEN = 16  # files held open


class Store:
    """The texts of a run for one prior, in order of their first appearance.

    folder: where stores are
    texts: called for an iterable of all texts; a text may come more than once
    encoder: what encodes them, in words
    """

    def __init__(self, folder: Path, texts: Callable[[], Iterable[str]], encoder: str) -> None:
        self.texts, key = texts, blake2b(encoder.encode(), digest_size=16)
        names = []
        for text in dict.fromkeys(texts()):
            names.append(_name(text))
            key.update(text.encode() + b"\0")
        self.order = np.argsort(np.array(names, np.uint64), kind="stable").astype(np.uint32)  # 12 bytes a text in all
        self.names = np.array(names, np.uint64)[self.order]
        self.folder = folder / key.hexdigest()
        self._open = lru_cache(OPEN)(self._opened)

    @property
    def blocks(self) -> int:
        """The number of files."""
        return -(-len(self.names) // BLOCK)

    @property
    def missing(self) -> int:
        """The number of texts in files that are not there yet."""
        missing = [block for block in range(self.blocks) if not self._path(block).exists()]
        return sum(min(BLOCK, len(self.names) - block * BLOCK) for block in missing)

    def write(self, prior: Prior, part: int = 0, parts: int = 1) -> None:
        """Encodes those of every `parts` files that are not there yet. Raises RunError where the folder cannot be written."""
        missing = [block for block in range(part, self.blocks, parts) if not self._path(block).exists()]
        if not missing:
            return
        texts = list(dict.fromkeys(self.texts()))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for block in missing:
                self._write(block, texts[block * BLOCK:(block + 1) * BLOCK], prior)
        except OSError as error:
            raise RunError(f"{self.folder}: the encoded prompts cannot be written: {error.strerror or error}; make room there "
                           "and resume") from None

    def verify(self) -> None:
        """Raises UserError where this rank does not see all files."""
        if missing := next((path for path in map(self._path, range(self.blocks)) if not path.is_file()), None):
            raise UserError(f"{missing}: not there, and another rank has written it; put the run folder on a file system that "
                            "all hosts see")

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns the embeddings [V, N, E] float32 of texts that are in the store."""
        return torch.from_numpy(np.stack([self._read("embeddings", text) for text in texts])).float()

    def ends(self, texts: Sequence[str]) -> list[int]:
        """Returns the place of the end token in each text."""
        return [int(self._read("ends", text)) for text in texts]

    def _read(self, dataset: str, text: str) -> Any:
        place = np.searchsorted(self.names, np.uint64(_name(text)))
        assert place < len(self.names) and self.names[place] == _name(text), f"{text!r} is not in the store"
        block, row = divmod(int(self.order[place]), BLOCK)
        return self._open(block)[dataset][row]

    def _path(self, block: int) -> Path:
        return self.folder / f"{block}.h5"

    def _write(self, block: int, texts: list[str], prior: Prior) -> None:
        import h5py

        path, fresh = self._path(block), self.folder / f".{block}.{os.getpid()}"
        embeddings, ends = prior.embed(texts), prior.ends(texts)
        half = embeddings.half()
        values = half if torch.equal(half.float(), embeddings) else embeddings  # what a model in float16 makes loses nothing
        try:
            with h5py.File(fresh, "w") as file:
                file.create_dataset("embeddings", data=values.numpy(), chunks=(1, *values.shape[1:]), fletcher32=True)
                file.create_dataset("ends", data=np.array(ends, np.int32), chunks=(len(ends),), fletcher32=True)
            with open(fresh, "rb") as file:
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

    def _opened(self, block: int) -> Any:
        import h5py

        try:
            return h5py.File(self._path(block), "r")
        except OSError:
            raise UserError(f"{self._path(block)}: damaged; remove it and resume, which encodes its prompts again") from None


class Stored:
    """A prior whose texts are in a store: its text encoder is not asked."""

    def __init__(self, prior: Prior, store: Store) -> None:
        self.prior, self.store = prior, store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def embed(self, strings: Sequence[str]) -> Tensor:
        """Returns [V, N, E] float32 on the CPU, as the prior does."""
        return self.store.embed(strings)

    def ends(self, strings: Sequence[str]) -> list[int]:
        """Returns the place of the end token in each text."""
        return self.store.ends(strings)


def _name(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
