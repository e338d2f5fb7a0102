"""What the built-in judge takes an object for, where the prompt is an object and a look that it knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiprop.metrics.judge import Judge
from mpiprop.metrics.measures import measure
from mpiprop.metrics.pictures import read
from mpiprop.config.prompts import read_prompts
from mpiprop.priors.vocabulary import MINOR, Vocabulary, words


@dataclass(frozen=True)
class Judged:
    """The verdict on the views of one object."""

    prompt: str
    views: int
    named: int  # how many of the views the judge puts nearer to the prompt than to any other that it knows
    nearest: str  # the prompt nearest to all views on average
    similarity: float  # mean cosine of the views with the prompt

    @property
    def brief(self) -> str:
        """The verdict in a few words."""
        return f"{self.named} of {self.views} views (similarity {self.similarity:.2f})"

    def __str__(self) -> str:
        other = "" if self.nearest == self.prompt else f'; to all of them together "{self.nearest}" is nearer'
        return f'the built-in judge names it "{self.prompt}" in {self.brief}{other}'


def judge(prompt: str, views: Sequence[Path]) -> Judged | None:
    """The verdict on the pictures `views`; None where `prompt` is no pair of object and look that the judge knows."""
    if not views or not (candidates := _candidates(prompt)):
        return None
    seen = Judge()
    (score,) = measure([(prompt, seen.features([read(path) for path in views]))], candidates, seen.texts(candidates)).objects
    return Judged(prompt, len(views), round(score.r_precision * len(views)), score.retrieved, score.similarity)


def _candidates(prompt: str) -> list[str]:
    """What the judge chooses from: all pairs of look and object, `prompt` in the place of its own; empty where that is none."""
    asked = set(words(prompt)) - Vocabulary.builtin().others - MINOR
    pairs = read_prompts("builtin")
    others = [pair for pair in pairs if set(words(pair)) - MINOR != asked]
    return [prompt, *others] if len(others) < len(pairs) else []
