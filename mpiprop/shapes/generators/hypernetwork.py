"""Networks that make the weights of other networks from a text (ATT3D, Lorraine et al. 2023, section 4.1).

Letters: E numbers of a pooled text, H of the hidden layer.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from mpiprop.core.streams import Streams, normal

SHAPE = tuple[int, int]


class HyperNetwork(nn.Module):
    """Matrices from a text: a linear layer E -> H without bias, layer normalisation, SiLU, a linear layer.

    shapes: of the matrices (numbers out, numbers in)
    spectral_norm: both layers are divided by their largest singular value
    """

    def __init__(self, rng: Streams, text: int, hidden: int, shapes: list[SHAPE], spectral_norm: bool = False) -> None:
        super().__init__()
        self.shapes, self.spectral_norm = shapes, spectral_norm
        out = sum(map(prod, shapes))
        self.inner = xavier(rng, "inner", hidden, text)
        self.scale, self.shift = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))
        self.outer, self.bias = xavier(rng, "outer", out, hidden), nn.Parameter(torch.zeros(out))

    def forward(self, pooled: Tensor) -> list[Tensor]:
        """Returns a matrix of each shape for a pooled text [E]."""
        inner, outer = self.inner, self.outer
        if self.spectral_norm:
            inner, outer = _normed(inner), _normed(outer)
        hidden = silu(layer_norm(inner @ pooled, self.scale.shape, self.scale, self.shift))
        parts = (outer @ hidden + self.bias).split([prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes)]


def xavier(rng: Streams, name: str, out: int, into: int) -> nn.Parameter:
    """Returns a matrix [out, in], normal with variance 2 / (in + out), drawn from the stream `name`."""
    return nn.Parameter(normal(rng(name), out, into) * (2 / (out + into)) ** 0.5)


def _normed(matrix: Tensor) -> Tensor:
    """The matrix over its largest singular value."""
    small = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return matrix / torch.linalg.eigvalsh(small)[-1].sqrt()
