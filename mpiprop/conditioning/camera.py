"""The camera of each view as a condition beside the text (MVDream, Shi et al. 2023)."""

from collections.abc import Mapping
from dataclasses import replace

from mpiprop.conditioning.base import Condition
from mpiprop.conditioning.text import Plain, TextConditions
from mpiprop.core.errors import UserError
from mpiprop.priors.base import Inputs, Prior
from mpiprop.priors.mvdream import VIEWS, camera_labels
from mpiprop.views.cameras import Views


class Cameras(Plain):
    """For MVDream: the same text for every view, and the camera of each.

    negative: what the unconditional text says
    """

    reads = frozenset({"text", "camera"})

    def encode(self, prior: Prior, prompt: str, texts: Mapping[str, str]) -> "CameraConditions":
        """Encodes the prompt for views whose cameras the prior knows, too."""
        return CameraConditions.of(prior, self, prompt, texts)


class CameraConditions(TextConditions):
    """Encoded texts, with the camera of each view."""

    def __call__(self, views: Views) -> Condition:
        """Returns texts and cameras. Raises UserError where a group of views is not whole."""
        if len(views) % VIEWS:
            raise UserError(f"guidance: {VIEWS} adjacent views are denoised together, and there are {len(views)}; the batch, "
                            f"and each of its window.shards, needs a multiple of {VIEWS}, drawn with group: {VIEWS}")
        texts = super().__call__(views)
        camera = camera_labels(views.c2w).to(texts.weights.device)

        def seen(inputs: Inputs) -> Inputs:
            return {**inputs, "camera": camera}
        return replace(texts, positive=seen(texts.positive), unconditional=seen(texts.unconditional),
                       negatives=tuple(map(seen, texts.negatives)),
                       texts={name: seen(inputs) for name, inputs in texts.texts.items()})
