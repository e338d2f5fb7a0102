"""What a guidance is: what it needs, and what it says of a render."""

from typing import Protocol

from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.views.cameras import Image, Views


class Guidance(Protocol):
    """What is wanted of a render.

    What a guidance needs it names as parameters of its constructor, and is given: `prior` and `prompts` (encoded
    Conditions), both configured under it; `lora`, what it trains beside the scene; `reference`, the picture that the run
    starts from. Keys annotated `Text` are encoded with the prompt and found in `Condition.texts`.
    """

    reads_normals: bool = False  # whether the image must have normals

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Tensor, dict[str, float]]:
        """Returns a scalar whose gradient in the image is the guidance's, and numbers for the log.

        It is a function of its arguments alone, and the mean over the views of what it says of each, so that a batch may
        be evaluated in parts.
        """

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where its settings at step tau, or the views drawn there, do not make sense."""
