"""Small bias-free networks of points, initialised from named streams.

Letters: N points, C channels in.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..core.steps import Streams, uniform


def initialised(rng: Streams, name: str, *shape: int, bound: float) -> nn.Parameter:
    """A parameter of the given shape, uniform in +-bound, drawn from the stream `name`."""
    return nn.Parameter(uniform(rng(name), *shape, lo=-bound, hi=bound))


class MLP(nn.Module):
    """Linear layers without biases, ReLU between them, initialised as torch.nn.Linear is."""

    def __init__(self, rng: Streams, *widths: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            initialised(rng, f"layer{i}", n_out, n_in, bound=n_in ** -0.5)
            for i, (n_in, n_out) in enumerate(zip(widths, widths[1:])))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, C_out] of inputs [N, C]."""
        *hidden, last = self.weights
        for weight in hidden:
            x = linear(x, weight).relu_()
        return linear(x, last)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The single output [N] and its gradient in the inputs [N, C], both differentiable in the weights."""
        *hidden, last = self.weights
        active = []
        for weight in hidden:
            x = linear(x, weight).relu_()
            active.append(x.detach().sign())
        gradient: Tensor = last
        for weight, mask in zip(reversed(hidden), reversed(active)):
            gradient = (gradient * mask) @ weight
        return linear(x, last)[:, 0], gradient.expand(len(x), -1)


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].clamp(max=15).exp()


trunc_exp = _TruncatedExp.apply
"""The exponential, its derivative held below e^15."""
