"""Where a run keeps what it makes: its name, whether it is finished, and which one --resume continues."""

import fcntl
import re
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from mpiprop.config import loader
from mpiprop.config.components import PACKAGE
from mpiprop.config.conversion import plain
from mpiprop.config.schema import Run
from mpiprop.core.errors import UserError

VIEWS = "views.png"  # ends the name of an object's views side by side, which `generate` makes
GENERATOR = "generator.safetensors"  # the numbers of an exported generator
BUILTIN = PACKAGE / "weights" / "generator"


def slug(text: str, longest: int = 48) -> str:
    """`text` as a file name: lower-case letters and digits, dashes between."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].strip("-") or "untitled"


def choose(name: str, run: Run, out: Path | None, resume: bool, root: Path = Path("runs")) -> Path:
    """The folder for `run` of configuration `name`. Raises UserError rather than write over a run that is already there."""
    if out is not None:
        if not resume and ((out / "config.yaml").exists() or (out / "window.h5").exists()):
            raise UserError(f"{out}: already contains a run; continue it with --resume, or choose another --out")
        return out
    stem = f"{slug(name)}-{slug(run.subject)}-{run.seed}"
    mine = [folder for folder in root.glob(f"{stem}*") if re.fullmatch(rf"{re.escape(stem)}(\.\d+)?", folder.name)
            and _is_of(folder, run)]
    if resume and (unfinished := [folder for folder in mine if not (folder / "done").exists()]):
        return max(unfinished, key=lambda folder: (folder / "config.yaml").stat().st_mtime)
    taken = {folder.name for folder in root.glob(f"{stem}*")}
    return root / next(name for i in range(1, 10**6) if (name := stem if i == 1 else f"{stem}.{i}") not in taken)


def objects(folder: Path) -> list[Path]:
    """The views of the objects that `generate` has made in a folder; none in that of a run."""
    return sorted(folder.glob(f"*.{VIEWS}"))


def place(source: str) -> Path:
    """The folder that `source` names: that of a run or of an exported generator, or for "builtin" that of the built-in one."""
    return BUILTIN if source == "builtin" else Path(source)


def configured(folder: Path, overrides: Sequence[str] = ()) -> Run:
    """The configuration of the run in `folder`. Raises UserError where there is none."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml)")
    return loader.load(str(folder / "config.yaml"), overrides)


def lock(folder: Path) -> IO[str]:
    """A lock on the folder that lasts as long as the file returned stays open, or the process.

    Raises UserError if another run still holds it after ten seconds, in which a killed one would have died.
    """
    file, end = open(folder / ".lock", "w"), monotonic() + 10
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if monotonic() > end:
                raise UserError(f"{folder}: another run is at work in it; wait for it, or give another --out") from None
            sleep(0.1)


def _is_of(folder: Path, run: Run) -> bool:
    """Whether the run in `folder` has the prompts, the picture and the seed of `run`."""
    try:
        made = loader.loads((folder / "config.yaml").read_text(), str(folder))
        then = (made["seed"], made["prompt"], made.get("prompts"), made["reference"]["sha256"])
        return then == (run.seed, run.prompt, plain(run.prompts_), run.reference.sha256)
    except (OSError, UserError, KeyError, TypeError):
        return False
