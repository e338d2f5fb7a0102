"""The protocols of networks that see depth in a picture, and of those that make a picture for them.

Letters: B pictures, H x W pixels, h x w of an estimate.
"""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from mpiprop.priors.base import Latents, Pictures
from mpiprop.priors.vocabulary import Vocabulary


class Frozen(Protocol):
    """A frozen network. Nothing is read by its constructor; weights are read at their first use."""

    vocabulary: Vocabulary | None  # None: it reads no texts

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Checks all files that it will read, without reading weights, and fetches those of a hub model. Returns notes for
        the user, a line each. Raises UserError for a file that is missing, damaged or of another model."""

    def weight_bytes(self) -> int:
        """Returns the bytes of its weights."""


class Estimator(Frozen, Protocol):
    """A network that sees depth."""

    def __call__(self, pictures: Pictures) -> Float[Tensor, "B h w"]:
        """Returns the inverse depth, up to scale and shift, in pictures that are in [0, 1] but for
        noise; differentiable."""


class Decoder(Frozen, Protocol):
    """A network that makes pictures of latents."""

    def __call__(self, x: Latents) -> Pictures:
        """Returns the pictures of latents in any state of noise, in [0, 1] but for noise;
        differentiable."""
