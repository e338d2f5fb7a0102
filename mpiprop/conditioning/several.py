"""Conditions of several prompts: each view has that of its own."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch

from mpiprop.conditioning.base import Condition, Conditions
from mpiprop.priors.base import Inputs
from mpiprop.views.cameras import Views

KEPT = 64  # conditions of the prompts asked for last


class SeveralConditions:
    """The conditions of each prompt of a run, by its place in the run's list. They are made when a view first needs them.

    conditions_of: returns the conditions of a prompt
    """

    def __init__(self, conditions_of: Callable[[int], Conditions], device: torch.device | str = "cpu") -> None:
        self.conditions_of = conditions_of
        self.of = lru_cache(KEPT)(lambda prompt: conditions_of(prompt).to(device))

    def to(self, device: torch.device | str) -> "SeveralConditions":
        """Returns the same on a device."""
        return SeveralConditions(self.conditions_of, device)

    def __call__(self, views: Views) -> Condition:
        """Returns the condition of views by their prompts."""
        parts = [self.of(prompt)(views[rows.start:rows.stop]) for prompt, rows in views.runs()]
        return Condition(_joined([part.positive for part in parts]), _joined([part.unconditional for part in parts]),
                         tuple(_joined(inputs) for inputs in zip(*(part.negatives for part in parts))),
                         torch.cat([part.weights for part in parts], 1), _named([part.texts for part in parts]))


def _joined(inputs: Sequence[Inputs]) -> Inputs:
    return {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}


def _named(texts: Sequence[Mapping[str, Inputs]]) -> dict[str, Inputs]:
    return {name: _joined([each[name] for each in texts]) for name in texts[0]}
