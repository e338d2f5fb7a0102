"""Networks that make a field from a prompt, their parameters shared by all prompts (ATT3D, Lorraine et al. 2023; ScaleDreamer,
Ma et al. 2024).

Letters: P prompts, N tokens of width E.
"""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.shapes.base import Shape
from mpiprop.shapes.fields.base import Field


@dataclass(frozen=True)
class Text:
    """An encoded prompt, without a view."""

    pooled: Float[Tensor, " E"]  # the encoder's state at the end token
    tokens: Float[Tensor, "N E"]


class Texts(Protocol):
    """The encoded prompts of a run."""

    def __call__(self, prompt: int) -> Text:
        """Returns the text of a prompt by its place in the run's list."""


class Generator(Shape):
    """A network that makes a field from the prompt of a view. Write `field`.

    What trains is the network: one theta for all prompts. A step draws the prompts of its views.
    """

    makes: type[Field] = Field  # the kind of field
    text_width: int | None = None  # width of the text that it reads; None: any

    def field(self, text: Text, rng: Streams | None) -> Field:
        """Returns the field of a prompt, differentiable in the generator's parameters.

        rng: random streams of this prompt in this step, for latent variables; None: evaluation, without any draw
        """
        raise NotImplementedError
