"""What is seen where a ray meets nothing (DreamFusion, section 3.2).

Letters: B views, H x W pixels.
"""

import torch
from torch import Tensor, nn

from mpiprop.core.streams import Streams, uniform
from mpiprop.geometry.harmonics import harmonics
from mpiprop.appearance.materials import ACTIVATIONS, Activation
from mpiprop.shapes.fields.networks import MLP


class Solid(nn.Module):
    """One colour behind everything.

    colour: red, green, blue in [0, 1]
    invert_prob: probability that the background of a training view is 1 - colour instead
    random_prob: probability that the background of a training batch is one random colour per view instead
    """

    def __init__(self, rng: Streams, *, colour: tuple[float, float, float] = (1.0, 1.0, 1.0), invert_prob: float = 0.0,
                 random_prob: float = 0.0) -> None:
        super().__init__()
        self.colour = nn.Buffer(torch.tensor(colour), persistent=False)
        self.invert_prob, self.random_prob = invert_prob, random_prob

    def forward(self, directions: Tensor, rng: Streams | None) -> Tensor:
        """Colours [B, H, W, 3] seen along unit directions [B, H, W, 3]; rng None: evaluation."""
        colours = self.colour.expand_as(directions)
        if rng is not None and self.invert_prob:
            inverted = rng.rows("background.invert", uniform, len(directions), 1, 1, 1) < self.invert_prob
            colours = torch.where(inverted.to(colours.device), 1 - colours, colours)
        return _replaced(colours, self.random_prob, rng)


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


def _replaced(colours: Tensor, probability: float, rng: Streams | None) -> Tensor:
    if rng is None or uniform(rng("background.random"), 1) >= probability:
        return colours
    return rng.rows("background.colour", uniform, len(colours), 1, 1, 3).to(colours.device).expand_as(colours)
