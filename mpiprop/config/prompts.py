"""Prompts that a file lists."""

import json
from pathlib import Path

from mpiprop.core.errors import UserError


def read_prompts(path: Path, part: str | None = None) -> list[str]:
    """The prompts of a file: of a text file one a line, of JSON a list or an object of lists.

    part: take only this list of an object; None takes all of them
    Raises UserError where the file cannot be read, or holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as prompts: {error}") from None
    if isinstance(found, dict):
        if part is not None and part not in found:
            raise UserError(f"{path}: has no key {part!r}, under which the prompts are")
        lists = found.values() if part is None else [found[part]]
        found = [prompt for prompts in lists for prompt in (prompts if isinstance(prompts, list) else [prompts])]
    if not isinstance(found, list) or not all(isinstance(prompt, str) for prompt in found):
        raise UserError(f"{path}: needs a list of texts, or an object of such lists")
    prompts = [prompt.strip() for prompt in found if prompt.strip()]
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return prompts
