"""Prompts that a file lists, or that a corpus known by its name has."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

from mpiprop.config.components import PACKAGE
from mpiprop.config.conversion import key
from mpiprop.core.errors import UserError, suggestion

NAMED = ("AT2520", "builtin")
ANIMALS = ("a squirrel", "a raccoon", "a pig", "a monkey", "a robot", "a lion", "a rabbit", "a tiger", "an orangutan", "a bear")
ACTIVITIES = ("riding a motorcycle", "sitting on a chair", "playing the guitar", "holding a shovel", "holding a blue balloon",
              "holding a book", "wielding a katana")
GARMENTS = ("a leather jacket", "a sweater", "a cape", "a medieval armor", "a backpack", "a suit")
HEADS = ("a party hat", "a sombrero", "a helmet", "a tophat", "a backpack", "a baseball cap")
UNSEEN = ("riding a bicycle", *ACTIVITIES[1:], "riding a bike")
LOOKS = ("made out of gold", "carved out of wood", "wearing a leather jacket", "wearing a tophat", "wearing a party hat",
         "wearing a sombrero", "wearing medieval armor")


@dataclass(frozen=True)
class Corpus:
    """The prompts of a run, from a file or by name."""

    file: str = key(
        "a file: .txt with a prompt a line; .json with a list, or an object of lists; .csv whose last column has the prompts. "
        "Or AT2520 (ATT3D), or builtin: what the built-in models were shown")
    part: str = key("which list of an object; of AT2520 train or val, of builtin train, val (pairs that "
                    "were held out) or scenes",
                    "train")
    count: int | None = key("take only so many, those with the least SHA-256", None, lo=1)
    sha256: str | None = key("of the prompts, joined by line feeds; other prompts are refused", None)

    def read(self) -> "Corpus":
        """Returns the same with `sha256`. Raises UserError where the prompts cannot be read, or have changed."""
        found = hashlib.sha256("\n".join(self.texts).encode()).hexdigest()
        if self.sha256 not in (None, found):
            raise UserError(f"{self.file}: its prompts have changed: now {len(self.texts)} with SHA-256 {found[:16]}..., "
                            f"and {self.sha256[:16]}... is wanted; put the former file back, or begin a new run")
        read = replace(self, sha256=found)
        read.__dict__["texts"] = self.texts  # so that the file is not read again
        return read

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The prompts, each once. Raises UserError where they are not to be had."""
        prompts = tuple(dict.fromkeys(read_prompts(self.file, self.part)))
        if self.count is None:
            return prompts
        if self.count > len(prompts):
            raise UserError(f"{self.file}: has {len(prompts)} prompts, and count is {self.count}")
        chosen = set(sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())[:self.count])
        return tuple(prompt for prompt in prompts if prompt in chosen)


def read_prompts(source: str, part: str | None = None) -> list[str]:
    """Returns the prompts of a file or of a corpus in `NAMED`, see `Corpus`.

    part: take only this list; None takes all
    Raises UserError where the file cannot be read, or holds no prompt.
    """
    found = _named(source) if source in NAMED else _listed(Path(source))
    if part is not None and part not in found:
        raise UserError(f"{source}: has no list {part!r}{suggestion(part, found)}")
    prompts = [prompt.strip() for name, prompts in found.items() if part in (None, name) for prompt in prompts]
    if not any(prompts):
        raise UserError(f"{source}: holds no prompts")
    return [prompt for prompt in prompts if prompt]


def _listed(path: Path) -> dict[str, Sequence[str]]:
    """The lists of prompts in a file, by name."""
    try:
        text = path.read_text(encoding="utf-8")
        found = (json.loads(text) if path.suffix == ".json" else list(_captions(text)) if path.suffix == ".csv"
                 else text.splitlines())
    except OSError as error:
        named = suggestion(str(path), NAMED) if error.errno == 2 else ""
        raise UserError(f"{path}: cannot be read as prompts: {error.strerror}{named}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as prompts: {error}") from None
    lists = found if isinstance(found, dict) else {"train": found}
    lists = {name: [prompts] if isinstance(prompts, str) else prompts for name, prompts in lists.items()}
    if not all(isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts) for prompts in lists.values()):
        raise UserError(f"{path}: needs a list of texts, or an object of such lists")
    return lists


def _captions(text: str) -> Iterator[str]:
    """The last column of a table such as Cap3D's, whose first line may be its head."""
    for i, row in enumerate(csv.reader(text.splitlines(keepends=True), strict=True)):
        if row and not (i == 0 and row[-1].strip().lower() in ("caption", "prompt", "text")):
            yield " ".join(row[-1].split())


def _named(name: str) -> dict[str, Sequence[str]]:
    if name == "AT2520":  # Lorraine et al. 2023, in the order of ScaleDreamer's file
        return {"train": [f"{who} {does} wearing {wears} wearing {head}"
                          for who, does, wears, head in product(ANIMALS, ACTIVITIES, GARMENTS, HEADS)],
                "val": [f"a pig {does} {look}" for does, look in product(UNSEEN, LOOKS)]}
    words = json.loads((PACKAGE / "weights" / "vocabulary.json").read_text())
    found: dict[str, list[str]] = {"train": [], "val": [], "scenes": []}
    for shape in words["shapes"]:
        for look in words["colours"]:
            part = "scenes" if shape in words["scenes"] else "val" if look in words["held_out"][shape] else "train"
            found[part].append(f"{'an' if look[0] in 'aeiou' else 'a'} {look} {shape}")
    return dict(found)
