"""The pictures that CLIP-FID compares with: read in batches, their moments kept in a file for the next time.

The file lies in $XDG_CACHE_HOME/mpiprop (default ~/.cache/mpiprop). Its name is a hash of the judge's fingerprint and of path,
size and time of change of every picture: whatever changes among them, the moments are computed anew.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mpiprop.core.errors import UserError

from mpiprop.metrics.judge import CHUNK, Judge
from mpiprop.metrics.measures import Moments
from mpiprop.metrics.pictures import SUFFIXES, read


def moments(folder: Path, judge: Judge, say: Callable[[str], None]) -> Moments:
    """The moments of the judge's features of all pictures in `folder` and below; `say` is told where they come from.

    Raises UserError where there are no pictures, or one cannot be read.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"--reference {folder}: holds no pictures ({', '.join(SUFFIXES)})")
    file = _cache() / f"reference-{_key(folder, paths, judge)}.npz"
    if (kept := _kept(file)) is not None:
        say(f"reference {folder}: {kept.count:,} pictures, statistics from {file}")
        return kept
    say(f"reference {folder}: {len(paths):,} pictures to read, once")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = reduce(add, (Moments.of(judge.features(list(pool.map(read, paths[i:i + CHUNK]))))
                             for i in range(0, len(paths), CHUNK)))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.stem}.{os.getpid()}.npz")
        np.savez(part, count=found.count, mean=found.mean, scatter=found.scatter)
        part.replace(file)
        say(f"reference {folder}: statistics kept in {file}")
    except OSError as error:
        say(f"reference {folder}: statistics not kept for the next time, {file.parent} cannot be written: {error.strerror}")
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mpiprop"


def _key(folder: Path, paths: list[Path], judge: Judge) -> str:
    stats = [(path, path.stat()) for path in paths]
    files = [(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.blake2b(json.dumps([judge.fingerprint(), files]).encode(), digest_size=16).hexdigest()


def _kept(file: Path) -> Moments | None:
    """What the file holds; None where there is none or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as found:
            return Moments(int(found["count"]), found["mean"], found["scatter"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
