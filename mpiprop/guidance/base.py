"""What a guidance is: what it needs, and what it says of a render."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.views.cameras import Image, Views


Scalar = Float[Tensor, ""]
Numbers = dict[str, float | Tensor]
"""What a guidance tells of an evaluation. A float is for the log: the mean over the views. A tensor of float32 is what steps
leave to the next: the sum over the views, which `Carrier.renewed` gets, or moments for the variance (core.variance)."""


class Carrier(Protocol):
    """The part of a guidance whose state depends on what evaluations measured.

    Its state rides in theta. So an evaluation reads a state that only steps before it have made, whichever rank it runs on;
    rank 0 renews it in the order of the steps; and it is in the checkpoint.
    """

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors of the state by name. They are set before each evaluation; their values now are the first."""

    def renewed(self, name: str, state: Tensor, measured: Tensor) -> Tensor:
        """Returns the state `name` after a step whose evaluation measured this under the same name."""


class Guidance(Protocol):
    """What is wanted of a render.

    What a guidance needs it names as parameters of its constructor, and is given: `prior` and `prompts` (encoded
    Conditions), both configured under it; `lora`, what it trains beside the scene; `reference`, the picture that the run
    starts from. Keys annotated `Text` are encoded with the prompt and found in `Condition.texts`.
    """

    reads_normals: bool = False  # whether the image must have normals

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Scalar, Numbers]:
        """Returns a scalar whose gradient in the image is the guidance's, and numbers.

        It is a function of its arguments alone, and the mean over the views of what it says of each, so that a batch may
        be evaluated in parts.
        """

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError where its settings at step tau, or the views drawn there, do not make sense."""
