"""The words that a small model was trained with, and those of a prompt that it does not know."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from mpiprop.core.errors import UserError

FILE = Path(__file__).resolve().parents[1] / "weights" / "vocabulary.json"
MINOR = frozenset("a an the of and with in on at by for from to as is it its this that one single very".split())


@dataclass(frozen=True)
class Vocabulary:
    """All words of a model's captions, in lower case.

    A model without `shapes` makes one object, whatever the prompt.
    """

    shapes: tuple[str, ...]  # nouns of the objects that it makes
    colours: tuple[str, ...]
    others: frozenset[str] = frozenset()  # words of views and the like

    @classmethod
    @cache
    def builtin(cls) -> "Vocabulary":
        """The words of the models in mpiprop/weights: priors that read text, and the judge."""
        record = json.loads(FILE.read_text())
        others = {word for view in record["views"] for word in words(view)}
        return cls(tuple(record["shapes"]), tuple(record["colours"]), frozenset(others))

    def unknown(self, text: str) -> list[str]:
        """The words of `text`, in lower case and each once, that mean something and that the model was never shown."""
        known = {*self.shapes, *self.colours} | self.others | MINOR
        return [word for word in words(text) if word not in known]

    def names_a_shape(self, text: str) -> bool:
        """Whether one of the words of `text` is an object that the model makes; always so if it makes only one."""
        return not self.shapes or not set(self.shapes).isdisjoint(words(text))

    def nearest(self, word: str) -> str | None:
        """The shape or colour spelt most like `word`, if there is one: chair for chairs, mushroom for mushrom."""
        return next(iter(get_close_matches(word, (*self.shapes, *self.colours), 1, 0.7)), None)

    def quoted(self, unknown: Iterable[str]) -> str:
        """The words for a message, each with the nearest known one: "corgi", "chairs" (nearest: "chair")."""
        return ", ".join(f'"{word}"' + (f' (nearest: "{near}")' if (near := self.nearest(word)) else "") for word in unknown)


def unknown_words(known: Vocabulary | None, model: str, prompts: Sequence[str], strings: Sequence[str], warn: bool,
                  otherwise: str = "") -> list[str]:
    """A warning about words of `strings`, the texts to encode, that a model does not know.

    known: its vocabulary; None: there is no list of its words
    model: what messages call it
    warn: also where a prompt names no shape known to it; else that raises UserError, which ends with `otherwise`
    """
    if known is None or not strings:
        return []
    unknown = known.quoted(known.unknown(" ".join(strings)))
    if nameless := [prompt for prompt in prompts if not known.names_a_shape(prompt)]:
        what = f"prompt {nameless[0]!r}: names nothing that the {model} can make"
        what += f" (it does not know {unknown})" if unknown else ""
        if warn:
            return [f"warning: {what}; expect a poor result"]
        raise UserError(f"{what}; it makes {', '.join(known.shapes)}, in {', '.join(known.colours)}{otherwise}")
    return [f"warning: the {model} does not know {unknown}; leave out what it does not know"] if unknown else []


def words(text: str) -> list[str]:
    """The words of a text in lower case, each once; signs and numbers are none."""
    return list(dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower())))
