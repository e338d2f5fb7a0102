"""The prompts that R-Precision retrieves from."""

from mpiprop.priors.vocabulary import Vocabulary


def builtin_prompts() -> list[str]:
    """All prompts that the built-in judge knows: "a green mushroom", "an orange chair", ..."""
    words = Vocabulary.builtin()
    return [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for shape in words.shapes for colour in words.colours]
