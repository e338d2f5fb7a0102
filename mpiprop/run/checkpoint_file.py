"""The file of a checkpoint without torch: whether it is whole, and what it holds, in words."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

from mpiprop.config import loader
from mpiprop.core.errors import UserError

WIDTH = 36


def inspect(path: Path) -> str:
    """What a checkpoint holds, as text, after reading all of it. Raises UserError where it does not verify."""
    import h5py

    verify(path)
    with reading(path), h5py.File(path, "r") as file:
        attrs = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
        layout = json.loads(file["x/layout"][()])
        sizes = [(f"/{name}", file[name]) for name in attrs["vectors"].split()]
        tau, k, D, L = int(attrs["tau"]), int(attrs["k"]), layout["D"], layout["L"]
        guesses = sum(name.startswith("/guess/") for name, _ in sizes)
        run = loader.loads(attrs["config"], str(path))
        stages = [stage["name"] for stage in run["stages"]]
        at = stages.index(attrs["stage"])
        said = [
            ("stage", f"{attrs['stage']}, {at + 1} of {len(stages)} ({', '.join(stages)})"),
            ("tau", f"{tau}: optimiser steps done, of {run['stages'][at]['steps']} in this stage"),
            ("k", f"{k}: iterations of the window that it took" + (f", {tau / k:.2f} steps each" if k else "")),
            ("e", f"{attrs['e']:.3g}: threshold; a step is accepted whose error (mean square change of a trained number) "
                  "is not above it; 0: exact"),
            ("window", f"{guesses} guesses of the steps to come" if guesses else "no guesses of the steps to come"),
            ("seed", f"{attrs['seed']}"),
            ("prompt", loader.flow(run.get("prompts") or run.get("prompt", ""))),
            ("complete", "yes, the run has taken its last step" if attrs["complete"] else "no: continue with --resume"),
            ("numbers", f"{D:,} trained" + (f", plus {L - D:,} stored but not trained" if L > D else "")
             + (f", of {layout['N']:,} Gaussians" if layout.get("N") else "")),
            ("written by", f"mpiprop {attrs['mpiprop']}, format {attrs['format']}")]
        lines = [f"{path}: verified, {path.stat().st_size / 1e6:.1f} MB", *(f"  {name:10} {text}" for name, text in said)]
        lines += ["vectors (x: the state at tau; x/slots: the optimiser's averages; x/averages: those of variances; guess: the "
                  "window):",
                  *(f"  {name:{WIDTH}} {'x'.join(map(str, vector.shape))} {vector.dtype}" for name, vector in sizes)]
        lines += ["parts of /x/flat:", *(
            f"  {name:{WIDTH}} {'x'.join(map(str, shape)) or '1'} at {offset:,}, "
            + (f"group {group}" if group else "stored but not trained") for name, shape, offset, group in layout["entries"]
            if prod(shape))]
    return "\n".join(lines)


def verify(path: Path) -> None:
    """Read every byte of every dataset: HDF5 compares the checksums."""
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        if "vectors" not in file.attrs:
            raise UserError(f"{path}: not a checkpoint of mpiprop")
        for name in ("x/layout", *file.attrs["vectors"].decode().split()):
            file[name][()]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what HDF5 says of a bad file into one line."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a flipped bit can surface as nearly anything
        raise UserError(f"{path}: damaged or not a checkpoint ({_first_line(error)}); move it away and start afresh, "
                        "or put a copy in its place") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().strip("'\"").splitlines()[0][:200] if str(error).strip() else type(error).__name__
