"""3DConv-Net: StyleGAN2's generator in three dimensions (Karras et al. 2020; CC3D, Bahmani et al. 2023), which makes a grid of
features from a latent vector and the text (ScaleDreamer, Ma et al. 2024).

Letters: C channels, W numbers of a style, N points, R grid points a side.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv3d, leaky_relu

from mpiprop.core.errors import UserError, positive
from mpiprop.core.streams import Streams, normal
from mpiprop.geometry.sampling import doubled, sample
from mpiprop.shapes.fields.networks import MLP
from mpiprop.shapes.generators.base import Generator, Text
from mpiprop.shapes.generators.sdf import GeneratedSDF

STYLE, LATENT, OUT = 256, 64, 32  # numbers of a style and of a latent vector, channels of the grid
MOST = 256.0  # activations are held in [-MOST, MOST]
START = 4  # grid points a side of the first block
CONSTANT_UP_TO = 64  # grid points a side of the last block with a learnt constant


class Linear(nn.Module):
    """A linear layer with equalised learning rate: weights of unit variance, scaled where they are used."""

    def __init__(self, rng: Streams, into: int, out: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(rng("weight"), out, into))
        self.bias = nn.Parameter(torch.full((out,), bias))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * self.weight.shape[1] ** -0.5) @ x + self.bias


class Convolution(nn.Module):
    """A convolution whose input channels are scaled by a style, and whose output is then brought to unit variance
    (demodulation) if `demodulated`."""

    def __init__(self, rng: Streams, into: int, out: int, size: int, demodulated: bool = True) -> None:
        super().__init__()
        self.affine = Linear(rng.of("affine"), STYLE, into, 1.0)
        self.weight = nn.Parameter(normal(rng("weight"), out, into, size, size, size))
        self.bias = nn.Parameter(torch.zeros(out))
        self.demodulated = demodulated

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Returns channels [out, R, R, R] of channels [in, R, R, R], without the bias."""
        scale = self.affine(style)
        if not self.demodulated:
            scale = scale * len(scale) ** -0.5
        weight = self.weight * scale[:, None, None, None]
        if self.demodulated:
            weight = weight * (weight.square().sum((1, 2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        return conv3d(x[None], weight, padding=weight.shape[-1] // 2)[0]


class Layer(nn.Module):
    """A styled 3 x 3 x 3 convolution, `doubling` or not, then noise, bias and leaky ReLU."""

    def __init__(self, rng: Streams, into: int, out: int, doubling: bool) -> None:
        super().__init__()
        self.convolution, self.doubling = Convolution(rng, into, out, 3), doubling
        self.noise = nn.Parameter(torch.zeros(1))  # its strength

    def forward(self, x: Tensor, style: Tensor, rng: Streams | None) -> Tensor:
        x = self.convolution(x, style)
        x = doubled(x) if self.doubling else x
        if rng is not None:
            x = x + self.noise * normal(rng("noise"), *x.shape[1:]).to(x.device)
        return activated(x + self.convolution.bias[:, None, None, None]).clamp(-MOST, MOST)


class Block(nn.Module):
    """The layers of one resolution."""

    def __init__(self, rng: Streams, into: int, out: int, side: int) -> None:
        super().__init__()
        self.first = Layer(rng.of("first"), into, out, True) if side > START else None
        self.constant = None
        if START < side <= CONSTANT_UP_TO:
            self.constant = nn.Parameter(normal(rng("constant"), out, side, side, side) * out ** -0.5)
        self.second = Layer(rng.of("second"), out, out, False)
        self.output = Convolution(rng.of("output"), out, OUT, 1, demodulated=False)

    def forward(self, x: Tensor, so_far: Tensor | None, style: Tensor, rng: Streams | None) -> tuple[Tensor, Tensor]:
        """Returns channels for the next block, and the sum of all outputs until now at this resolution."""
        if self.first is not None:
            x = self.first(x, style, rng and rng.of("first"))
        if self.constant is not None:
            x = x + self.constant
        x = self.second(x, style, rng and rng.of("second"))
        made = self.output(x, style) + self.output.bias[:, None, None, None]
        return x, made if so_far is None else doubled(so_far) + made


class Conv3D(Generator):
    """A signed distance and features read from a grid that a convolutional network makes of the text and a latent vector.

    radius: half side of the box that holds everything (world units)
    text_width: numbers of the pooled text embedding (1024 for Stable Diffusion 2.1)
    resolution: grid points a side, a power of 2 of at least 8
    channels: most channels of a layer
    channel_multiplier: channels of a layer with R points a side are 8192 / R times this, at most `channels`
    hidden: width of the networks that read the grid
    sphere: radius of the sphere that every object begins as (world units)
    """

    has_normals, makes = True, GeneratedSDF

    def __init__(self, rng: Streams, *, radius: float = 2.0, text_width: int = 1024, resolution: int = 128, channels: int = 512,
                 channel_multiplier: float = 1.0, hidden: int = 64, sphere: float = 0.8) -> None:
        super().__init__()
        positive(radius=radius, text_width=text_width, channels=channels, channel_multiplier=channel_multiplier, hidden=hidden)
        if resolution < 2 * START or resolution & (resolution - 1):
            raise UserError(f"resolution: needs a power of 2 of at least {2 * START}, got {resolution}")
        self.radius, self.text_width, self.sphere = radius, text_width, sphere
        sides = [START << k for k in range((resolution // START).bit_length())]
        widths = [max(1, min(channels, int(8192 * channel_multiplier) // side)) for side in sides]
        self.mapping = nn.ModuleList(Linear(rng.of(f"mapping{i}"), into, STYLE)
                                     for i, into in enumerate((LATENT, STYLE, STYLE + text_width)))
        self.start = nn.Parameter(normal(rng("start"), widths[0], START, START, START))
        self.blocks = nn.ModuleList(Block(rng.of(f"block{side}"), into, out, side)
                                    for side, into, out in zip(sides, [widths[0], *widths], widths))
        self.sdf_network = MLP(rng.of("sdf"), OUT, hidden, 1)
        self.feature_network = MLP(rng.of("features"), OUT, hidden, 3)

    def grid(self, text: Text, rng: Streams | None) -> Float[Tensor, "32 R R R"]:
        """Returns the grid of a prompt; evaluation (rng None) has no noise, and the same latent vector always."""
        z = normal((rng or Streams(0, 0))("latent"), LATENT).to(text.pooled.device)
        z = z * (z.square().mean() + 1e-8).rsqrt()
        first, second, last = self.mapping
        style = last(torch.cat([activated(second(activated(first(z)))), text.pooled]))
        x, so_far = self.start, None
        for i, block in enumerate(self.blocks):
            x, so_far = block(x, so_far, style, rng and rng.of(f"block{i}"))
        return so_far

    def field(self, text: Text, rng: Streams | None) -> GeneratedSDF:
        grid = self.grid(text, rng)

        def raw(x: Tensor) -> Tensor:
            code = sample(grid, x / self.radius)
            return torch.cat([self.sdf_network(code), self.feature_network(code)])
        return GeneratedSDF(raw, self.radius, self.sphere)


def activated(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2, scaled to keep the variance."""
    return leaky_relu(x, 0.2) * 2 ** 0.5
