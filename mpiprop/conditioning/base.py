"""What a prior knows of the views that it judges: a prompt, cameras, a picture.

A condition component (`prompts:` in a configuration) is encoded once, on one rank; what comes out is sent to all ranks
and turns any batch of views into the inputs of the prior's network.

Letters: B views, N tokens of width E, K negatives, C channels, P prompts, h x w the prior's space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.priors.base import Inputs, Prior
from mpiprop.views.cameras import Views


@dataclass(frozen=True)
class Condition:
    """The inputs under which a network is asked about a batch of views."""

    positive: Inputs  # what the views should show
    unconditional: Inputs
    negatives: tuple[Inputs, ...]  # K, of Perp-Neg
    weights: Float[Tensor, "K B"]  # of the negatives; below zero pushes away
    texts: Mapping[str, Inputs] = field(default_factory=dict)
    """The guidance's own texts by the names of their keys, and "plain": the prompt without a view."""


class Conditions(Protocol):
    """Encoded conditions of any view: made on one rank, sent to all."""

    def to(self, device: torch.device | str) -> "Conditions":
        """Returns the same conditions on a device."""

    def __call__(self, views: Views) -> Condition:
        """Returns the condition of these views. Raises UserError for views of another number than it needs."""


class Conditioner(Protocol):
    """A component that can be `prompts:` of a guidance."""

    def check(self, prior: Prior) -> None:
        """Raises UserError for a prior that reads something else."""

    def strings(self, prompt: str) -> list[str]:
        """Returns the texts that are encoded for a prompt; none where the prior reads no text."""

    def encode(self, prior: Prior, prompt: str, texts: Mapping[str, str]) -> Conditions:
        """Encodes a prompt, and the guidance's own `texts` by name, and frees the encoder."""


def texts_for(prompt: str, texts: Mapping[str, str]) -> Sequence[str]:
    """Returns a guidance's own texts for a prompt, which replaces {prompt} in them."""
    return [text.replace("{prompt}", prompt) for text in texts.values()]
