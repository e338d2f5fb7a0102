"""What the built-in judge takes an object for, where it knows the words of the prompt."""

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
    """The verdict on the pictures `views`; None where the judge does not know the words of the prompt."""
    if not views or not (candidates := _candidates(prompt)):
        return None
    seen = Judge()
    (score,) = measure([(prompt, seen.features([read(path) for path in views]))], candidates, seen.texts(candidates)).objects
    return Judged(prompt, len(views), round(score.r_precision * len(views)), score.retrieved, score.similarity)


def _candidates(prompt: str) -> list[str]:
    """What the judge chooses from: the prompt and all others of its kind, a colour and a shape or a shape; empty for a
    prompt of another kind."""
    vocabulary = Vocabulary.builtin()
    asked = set(words(prompt)) - vocabulary.others - MINOR
    for kind in (read_prompts("builtin"), [f"a {shape}" for shape in vocabulary.shapes]):
        others = [candidate for candidate in kind if set(words(candidate)) - MINOR != asked]
        if len(others) < len(kind):
            return [prompt, *others]
    return []
