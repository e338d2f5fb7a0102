"""The prompts that R-Precision retrieves from."""

import json
from pathlib import Path

from mpiprop.core.errors import UserError
from mpiprop.priors.vocabulary import Vocabulary


def builtin_prompts() -> list[str]:
    """All prompts that the built-in judge knows: "a green mushroom", "an orange chair", ..."""
    words = Vocabulary.builtin()
    return [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for shape in words.shapes for colour in words.colours]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line, or JSON (a list, or an object of lists). Raises UserError if none."""
    try:
        text = Path(path).read_text()
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as prompts: {error}") from None
    if isinstance(found, dict):
        found = [prompt for prompts in found.values() for prompt in prompts]
    prompts = [prompt.strip() for prompt in found if prompt.strip()]
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return prompts
