"""Window <-> HDF5: atomic, verified, versioned (`mpiprop inspect` shows the schema).

A file is written under a temporary name in the same folder, synced, read back and only then renamed over the previous one,
so at every moment a whole checkpoint lies on the disk. Vectors carry fletcher32 sums; texts have fixed length and so live in
object headers, which HDF5's newest format checksums (variable-length ones would not be): a flipped bit or a cut end is found
on loading.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import torch
from torch import Tensor

from mpiprop import __version__
from mpiprop.run.checkpoint_file import reading, verify
from mpiprop.core.errors import RunError, UserError
from mpiprop.core.theta import Layout, State, Theta
from mpiprop.picard.window import Window
from mpiprop.shapes.clouds.densify import MOVES, VIEWS

FORMAT, READS = 2, (1, 2)  # 1: written by version 0.1.0


@dataclass(frozen=True)
class Checkpoint:
    """A window and the run it belongs to."""

    window: Window
    stage: str
    seed: int
    config: str  # the resolved configuration, YAML text
    complete: bool = False  # theta_T of the last stage
    version: str = __version__


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path` in one piece or not at all. Raises RunError, leaving the previous file, if it cannot."""
    part = path.with_name(f".{path.name}.part")
    try:
        with Disk(part, "w+") as disk:
            _write(disk, checkpoint)
            disk.check()
            os.fsync(disk.fileno())
        verify(part)
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, UserError) as error:
        part.unlink(missing_ok=True)
        kept = f"; the previous checkpoint {path} is whole" if path.exists() else ""
        why = getattr(error, "strerror", None) or "what was written does not read back"
        raise RunError(f"cannot write the checkpoint {part}: {why}{kept}. Make room and run again with --resume") from None


class Disk(FileIO):
    """A file object for HDF5 that keeps write errors until the file is closed, because HDF5 cannot handle them. Data
    are written piece by piece; the file is never in memory as a whole."""

    failure: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Writes `data` and returns its length, also where the write fails."""
        rest = memoryview(data)
        with self._keeping():
            while rest:
                rest = rest[super().write(rest):]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Sets the size of the file and returns it, also where that fails."""
        with self._keeping():
            size = super().truncate(size)
        return size or 0

    def check(self) -> None:
        """Raises the first failure, if there was one."""
        if self.failure:
            raise self.failure

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except OSError as failure:
            self.failure = self.failure or failure


def _write(disk: Disk, checkpoint: Checkpoint) -> None:
    import h5py

    x = checkpoint.window.x
    vectors = {"x/flat": x.theta.flat, **{f"x/slots/{name}": slot for name, slot in x.slots.items()},
               **{f"x/statistics/{name}": values for name, values in x.statistics.items()},
               **{f"x/averages/{quote(name)}": values for name, values in x.averages.items()},
               **{f"guess/{j:03d}": theta.flat for j, theta in enumerate(checkpoint.window.guess)}}
    last = None
    for name, theta in {"x/ancestry": x.theta, **{f"ancestry/{j:03d}": theta
                                                  for j, theta in enumerate(checkpoint.window.guess)}}.items():
        if theta.ancestry is not last:  # that of the steps before holds on
            vectors[name] = last = theta.ancestry
    texts = {"mpiprop": __version__, "stage": checkpoint.stage, "config": checkpoint.config,
             "vectors": " ".join(vectors)}  # the last: what must be there when the file is read
    with h5py.File(disk, "w", libver="latest") as file:
        file.attrs.update(format=FORMAT, tau=x.tau, k=checkpoint.window.k, e=checkpoint.window.e, seed=checkpoint.seed,
                          complete=checkpoint.complete)
        file.attrs.update({name: np.bytes_(text.encode()) for name, text in texts.items()})
        file.create_group("x")
        _put_text(file, "x/layout", x.theta.layout.to_json())
        for name, vector in vectors.items():
            _put(file, name, vector)


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint at `path`, its tensors on `device`. Raises UserError if it is missing, damaged or of another format."""
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        attrs = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
        if attrs.get("format") not in READS:
            raise UserError(f"{path}: checkpoint format {attrs.get('format')}, this mpiprop {__version__} reads "
                            f"{' and '.join(map(str, READS))}")
        layout = Layout.from_json(file["x/layout"][()].decode())
        names = attrs["vectors"].split()
        slots, statistics, averages = (
            {unquote(name.removeprefix(part)): _get(file[name], to) for name in names if name.startswith(part)}
            for part, to in (("x/slots/", device), ("x/statistics/", device), ("x/averages/", "cpu")))
        points = {name: _get(file[name], "cpu") for name in names if name.startswith(("x/ancestry", "ancestry/"))}
        if attrs["format"] == 1 and layout.N:
            points = {"x/ancestry": slots.pop("points").cpu(), **{name.replace("points", "ancestry"): _get(file[name], "cpu")
                                                                  for name in names if name.startswith("points/")}}
            statistics = dict(zip((MOVES, VIEWS), slots.pop("seen").view(2, -1)))
        ids = points.get("x/ancestry")
        theta, guess = Theta(_get(file["x/flat"], device), layout, ids), []
        for name in (name for name in names if name.startswith("guess/")):
            ids = points.get(name.replace("guess", "ancestry"), ids)
            guess.append(Theta(_get(file[name], device), layout if ids is None else layout.of_points(len(ids)), ids))
        window = Window(State(int(attrs["tau"]), theta, slots, statistics, averages), tuple(guess), float(attrs["e"]),
                        int(attrs["k"]))
        return Checkpoint(window, attrs["stage"], int(attrs["seed"]), attrs["config"], bool(attrs["complete"]),
                          attrs["mpiprop"])


def _put(file, name: str, values: Tensor) -> None:
    values = values.detach().cpu().numpy()
    chunks = (max(1, min(len(values), 1 << 20)), *values.shape[1:])
    file.create_dataset(name, data=values, chunks=chunks, fletcher32=True)


def _put_text(file, name: str, text: str) -> None:
    import h5py

    data = np.array(text.encode())
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.COMPACT)
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(data.dtype), h5py.h5s.create(h5py.h5s.SCALAR), create)
    dataset.write(h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5s.create(h5py.h5s.SCALAR), data)


def _get(dataset, device: torch.device | str) -> Tensor:
    return torch.from_numpy(dataset[()]).to(device)
