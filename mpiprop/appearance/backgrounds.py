"""Backgrounds: the colours of rays that meet nothing (DreamFusion, section 3.2).

Letters: B views, H x W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpiprop.appearance.materials import ACTIVATIONS, Activation
from mpiprop.core.errors import positive
from mpiprop.core.streams import Streams, uniform
from mpiprop.geometry.harmonics import harmonics
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.shapes.fields.networks import MLP
from mpiprop.shapes.generators.base import Text
from mpiprop.shapes.generators.hypernetwork import HyperNetwork


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
        colours = self.network(self.code(directions.reshape(-1, 3))).T.reshape(directions.shape)
        return _replaced(self.activation(colours), self.random_prob, rng)

    def code(self, directions: Tensor) -> Tensor:
        """Returns what the network reads, [C, N], of unit directions [N, 3]."""
        return harmonics(directions)


class HashEnvironment(NeuralEnvironment):
    """A colour per direction, from a hash grid around the unit sphere and a small network.

    levels: grids in the pyramid, of 2 features each
    log2_table: binary logarithm of the most entries a grid may have
    base_resolution: cells a side of the coarsest grid
    growth: resolution of a grid over that of the next coarser one
    """

    def __init__(self, rng: Streams, *, levels: int = 4, log2_table: int = 19, base_resolution: int = 4,
                 growth: float = 4.0, hidden: int = 16, **keys: Any) -> None:
        super().__init__(rng, hidden=hidden, **keys)
        self.encoding = HashEncoding(rng.of("background"), levels, log2_table, base_resolution, growth, "torch")
        self.network = MLP(rng.of("background"), self.encoding.channels, hidden, hidden, 3)

    def code(self, directions: Tensor) -> Tensor:
        """Returns the features [C, N] of unit directions [N, 3]."""
        return self.encoding((directions / 2 + 0.5).T.contiguous())


class TextBackground(nn.Module):
    """The base class of backgrounds that depend on the prompt; its shape is a generator. Write `reading`."""

    text_width: int | None = None  # numbers of the pooled text that it reads; None: any

    def reading(self, text: Text) -> Callable[[Tensor, Streams | None], Tensor]:
        """Returns the background of a prompt, to be called like any other."""
        raise NotImplementedError


class HyperEnvironment(TextBackground):
    """A colour per direction, from a hash encoding of directions that all prompts share and a small network that a hypernetwork
    makes from the text (ScaleDreamer's Hyper-iNGP).

    text_width: numbers of the pooled text embedding (1024 for Stable Diffusion 2.1)
    levels: grids, of 2 features each
    base_resolution: cells a side of the coarsest grid
    growth: resolution of a grid over that of the next coarser one
    hidden: width of the hypernetwork's hidden layer and of the network that it makes
    spectral_norm: divide the hypernetwork's layers by their largest singular value
    random_prob: probability that the background of a training batch is one random colour per view instead
    eval_colour: colour in evaluation renders, instead of the network's
    """

    def __init__(self, rng: Streams, *, text_width: int = 1024, levels: int = 16, base_resolution: int = 16,
                 growth: float = 1.0, hidden: int = 64, spectral_norm: bool = False, random_prob: float = 0.2,
                 eval_colour: tuple[float, float, float] | None = None) -> None:
        super().__init__()
        positive(text_width=text_width, hidden=hidden)
        self.encoding = HashEncoding(rng.of("background"), levels, 19, base_resolution, growth, "torch")
        self.hypernetwork = HyperNetwork(rng.of("background"), text_width, hidden,
                                         [(hidden, self.encoding.channels), (3, hidden)], spectral_norm)
        self.text_width, self.random_prob, self.eval_colour = text_width, random_prob, eval_colour

    def reading(self, text: Text) -> Callable[[Tensor, Streams | None], Tensor]:
        into, out = self.hypernetwork(text.pooled)

        def colours(directions: Tensor, rng: Streams | None) -> Tensor:
            if rng is None and self.eval_colour is not None:
                return directions.new_tensor(self.eval_colour).expand_as(directions)
            code = self.encoding(((directions.reshape(-1, 3).T + 1) / 2).contiguous())
            made = (out @ (into @ code).relu()).sigmoid().T.reshape(directions.shape)
            return _replaced(made, self.random_prob, rng)
        return colours


def _replaced(colours: Tensor, probability: float, rng: Streams | None) -> Tensor:
    if rng is None or uniform(rng("background.random"), 1) >= probability:
        return colours
    return rng.rows("background.colour", uniform, len(colours), 1, 1, 3).to(colours.device).expand_as(colours)
