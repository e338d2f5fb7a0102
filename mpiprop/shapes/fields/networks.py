"""Small bias-free networks, initialised from named streams.

Letters: N points, C channels in. Channels come first: long rows of points are what the CPU reads fastest.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mpiprop.core.streams import Streams, uniform


def initialised(rng: Streams, name: str, *shape: int, bound: float) -> nn.Parameter:
    """A parameter of the given shape, uniform in +-bound, drawn from the stream `name`."""
    return nn.Parameter(uniform(rng(name), *shape, lo=-bound, hi=bound))


class MLP(nn.Module):
    """Linear layers without biases (at least two), ReLU between them, initialised as torch.nn.Linear is."""

    def __init__(self, rng: Streams, *widths: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            initialised(rng, f"layer{i}", n_out, n_in, bound=n_in ** -0.5)
            for i, (n_in, n_out) in enumerate(zip(widths, widths[1:])))

    def forward(self, x: Float[Tensor, "C N"]) -> Float[Tensor, "C_out N"]:
        """Outputs of inputs."""
        *hidden, last = self.weights
        for weight in hidden:
            x = (weight @ x).relu_()
        return last @ x

    def value_and_gradient(self, x: Float[Tensor, "C N"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "C N"]]:
        """The single output and its gradient in the inputs, both differentiable in the weights."""
        *hidden, last = self.weights
        active = []
        for weight in hidden:
            x = (weight @ x).relu_()
            active.append(x.detach().sign())
        gradient = (hidden[-1].T * last) @ active.pop()
        for weight, mask in zip(hidden[-2::-1], reversed(active)):
            gradient = weight.T @ (gradient * mask)
        return (last @ x)[0], gradient


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
