"""Triplane-Transformer: learnt tokens of three planes that attend to the text and to each other (LRM, Hong et al. 2023, its
decoder; ScaleDreamer, Ma et al. 2024).

Letters: T tokens of the planes of width D, N tokens of the text of width E, S tokens a side of a plane, C channels, Q points.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from mpiprop.core.errors import UserError, positive
from mpiprop.core.streams import Streams, normal
from mpiprop.geometry.sampling import sample
from mpiprop.shapes.fields.networks import MLP, initialised
from mpiprop.shapes.generators.base import Generator, Text
from mpiprop.shapes.generators.sdf import GeneratedSDF

AXES = ((0, 1), (0, 2), (2, 1))  # of the points on each plane: x y, x z and z y


class Norm(nn.Module):
    """Layer normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.scale.shape, self.scale, self.shift, 1e-6)


class Attention(nn.Module):
    """Attention with several heads, without biases."""

    def __init__(self, rng: Streams, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.output = (initialised(rng, name, width, width, bound=width ** -0.5) for name in ("query", "output"))
        self.key, self.value = (initialised(rng, name, width, context, bound=context ** -0.5) for name in ("key", "value"))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Returns what tokens [T, D] read of a context [N, E]."""
        query, key, value = ((tokens @ weight.T).unflatten(-1, (self.heads, -1)).transpose(0, 1)
                             for tokens, weight in ((x, self.query), (context, self.key), (context, self.value)))
        return scaled_dot_product_attention(query[None], key[None], value[None])[0].transpose(0, 1).flatten(1) @ self.output.T


class Block(nn.Module):
    """Attention to the text if there is `context`, self-attention, and two linear layers; each is added to its input."""

    def __init__(self, rng: Streams, width: int, context: int, heads: int) -> None:
        super().__init__()
        if context:
            self.norm_text, self.text = Norm(width), Attention(rng.of("text"), width, context, heads)
        self.norm_self, self.itself = Norm(width), Attention(rng.of("self"), width, width, heads)
        self.norm_mlp, bound = Norm(width), width ** -0.5
        self.inner = initialised(rng, "inner", 4 * width, width, bound=bound)
        self.inner_bias = initialised(rng, "inner_bias", 4 * width, bound=bound)
        self.outer = initialised(rng, "outer", width, 4 * width, bound=bound / 2)
        self.outer_bias = initialised(rng, "outer_bias", width, bound=bound / 2)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        if context is not None:
            x = x + self.text(self.norm_text(x), context)
        normed = self.norm_self(x)
        x = x + self.itself(normed, normed)
        hidden = gelu(self.norm_mlp(x) @ self.inner.T + self.inner_bias)
        return x + hidden @ self.outer.T + self.outer_bias


class Triplane(Generator):
    """A signed distance and features read from three planes that a transformer makes of the text.

    radius: half side of the box that holds everything (world units)
    text_width: width of the text's tokens (1024 for Stable Diffusion 2.1)
    reads: tokens: every layer attends to the text's tokens; pooled: the pooled text is one more token
    layers: of the transformer
    width: of its tokens
    heads: of its attention
    side: tokens along a side of a plane, which has twice as many points
    channels: of a plane
    hidden: width of the two hidden layers of the network that reads the planes
    sphere: radius of the sphere that every object begins as (world units)
    """

    has_normals, makes = True, GeneratedSDF

    def __init__(self, rng: Streams, *, radius: float = 2.0, text_width: int = 1024,
                 reads: Literal["tokens", "pooled"] = "tokens", layers: int = 12, width: int = 768, heads: int = 16,
                 side: int = 32, channels: int = 32, hidden: int = 64, sphere: float = 0.8) -> None:
        super().__init__()
        positive(radius=radius, text_width=text_width, layers=layers, width=width, heads=heads, side=side, channels=channels,
                 hidden=hidden)
        if width % heads:
            raise UserError(f"width: needs a multiple of heads ({heads}), got {width}")
        self.radius, self.text_width, self.sphere, self.side, self.reads = radius, text_width, sphere, side, reads
        self.tokens = nn.Parameter(normal(rng("tokens"), 3 * side ** 2, width) * width ** -0.5)
        if reads == "pooled":
            self.projection = initialised(rng, "projection", width, text_width, bound=text_width ** -0.5)
            self.projection_bias = initialised(rng, "projection_bias", width, bound=text_width ** -0.5)
        self.blocks = nn.ModuleList(Block(rng.of(f"block{i}"), width, text_width if reads == "tokens" else 0, heads)
                                    for i in range(layers))
        self.norm = Norm(width)
        self.upsample = initialised(rng, "upsample", width, channels, 2, 2, bound=(4 * channels) ** -0.5)
        self.network = MLP(rng.of("network"), 3 * channels, hidden, hidden, 4)  # distance and features

    def planes(self, text: Text) -> Float[Tensor, "3 C R R"]:
        """Returns the three planes, R = 2 S, of a prompt."""
        x, context = self.tokens, text.tokens
        if self.reads == "pooled":
            x, context = torch.cat([(self.projection @ text.pooled + self.projection_bias)[None], x]), None
        for block in self.blocks:
            x = block(x, context)
        x = self.norm(x[-len(self.tokens):]).view(3, self.side, self.side, -1)
        return torch.einsum("pijd,dcab->pciajb", x, self.upsample).reshape(3, -1, 2 * self.side, 2 * self.side)

    def field(self, text: Text, rng: Streams | None) -> GeneratedSDF:
        planes = self.planes(text)

        def raw(x: Tensor) -> Tensor:
            code = torch.cat([sample(plane, x[:, axes] / self.radius) for plane, axes in zip(planes, AXES)])
            return self.network(code)
        return GeneratedSDF(raw, self.radius, self.sphere)
