"""What is seen where a ray meets nothing (DreamFusion, section 3.2).

Letters: B views, H x W pixels.
"""

import torch
from torch import Tensor, nn

from ..core.steps import Streams, uniform
from .materials import ACTIVATIONS, Activation
from .networks import MLP


class Solid(nn.Module):
    """One colour behind everything.

    colour: red, green, blue in [0, 1]
    random_prob: probability that the background of a training batch is one random colour per view instead
    """

    def __init__(self, rng: Streams, *, colour: tuple[float, float, float] = (1.0, 1.0, 1.0),
                 random_prob: float = 0.0) -> None:
        super().__init__()
        self.colour = nn.Buffer(torch.tensor(colour), persistent=False)
        self.random_prob = random_prob

    def forward(self, directions: Tensor, rng: Streams | None) -> Tensor:
        """Colours [B, H, W, 3] seen along unit directions [B, H, W, 3]; rng None: evaluation."""
        return _replaced(self.colour.expand_as(directions), self.random_prob, rng)


class NeuralEnvironment(nn.Module):
    """A colour per direction, from spherical harmonics of degree < 3 and a small network.

    activation: what makes a colour of the network's output
    hidden: width of the network's two hidden layers
    random_prob: probability that the background of a training batch is one random colour per view instead
    eval_colour: colour in evaluation renders, instead of the network's
    """

    def __init__(self, rng: Streams, *, activation: Activation = "sigmoid", hidden: int = 16, random_prob: float = 0.0,
                 eval_colour: tuple[float, float, float] | None = None) -> None:
        super().__init__()
        self.network = MLP(rng.of("background"), 9, hidden, hidden, 3)
        self.activation, self.random_prob, self.eval_colour = ACTIVATIONS[activation], random_prob, eval_colour

    def forward(self, directions: Tensor, rng: Streams | None) -> Tensor:
        """Colours [B, H, W, 3] seen along unit directions [B, H, W, 3]; rng None: evaluation."""
        if rng is None and self.eval_colour is not None:
            return directions.new_tensor(self.eval_colour).expand_as(directions)
        colours = self.network(harmonics(directions.reshape(-1, 3))).T.reshape(directions.shape)
        return _replaced(self.activation(colours), self.random_prob, rng)


def harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics [9, N] of degree 0, 1, 2 at unit directions [N, 3], ordered as in tiny-cuda-nn."""
    x, y, z = directions.unbind(-1)
    return torch.stack([
        torch.full_like(x, 0.28209479177387814),
        -0.48860251190291987 * y, 0.48860251190291987 * z, -0.48860251190291987 * x,
        1.0925484305920792 * x * y, -1.0925484305920792 * y * z,
        0.94617469575755997 * z * z - 0.31539156525251999,
        -1.0925484305920792 * x * z, 0.54627421529603959 * (x * x - y * y)])


def _replaced(colours: Tensor, probability: float, rng: Streams | None) -> Tensor:
    if rng is None or uniform(rng("background.random"), 1) >= probability:
        return colours
    return rng.rows("background.colour", uniform, len(colours), 1, 1, 3).to(colours.device).expand_as(colours)
