"""Control variates for score distillation (SteinDreamer, Wang et al., arXiv 2401.00604).

A vector h of mean zero may be subtracted from the residual in any amount: its mean stays, its variance changes. SDS
subtracts the noise eps. By Stein's identity for x_t ~ N(alpha x, sigma^2 I),

    h = eps phi(x_t) - sigma grad phi(x_t),   E[h] = 0,

for every differentiable phi; phi = 1 gives the noise. Here phi compares the depth of the render with the depth that an
estimator sees in x_t. The paper prints eps phi + grad phi, which does not have mean zero when x_t = alpha x + sigma eps.

    residual = f - mu_0 eps - mu_1 h,   (mu_0, mu_1) = G^-1 r,   G = E[(eps, h) (eps, h)^T],   r = E[(eps, h) f]

where f is what a distillation subtracts no noise from. These weights minimise the second moment. They are estimated for
each noise level by running averages over the steps before: if they depended on the present noise, the residual would be
biased. Any phi is allowed. A poor one only reduces no variance, and its weight goes to zero.

Letters: B views, L noise levels, V variates, x_t, eps and h [B, C, h, w], depths [B, H, W].
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.variance import LEVELS, by_level
from mpiprop.estimators.base import Decoder, Estimator
from mpiprop.estimators.relief import alignment, correlation, inverse_depth
from mpiprop.guidance.distillation import Sample
from mpiprop.priors.base import Latents, alpha_sigma

RIDGE = 1e-6  # added to the diagonal of G, times its mean
GRAD_SCALE = 2.0 ** 12  # of phi while it is differentiated, which keeps gradients within the range of half precision


class Noise:
    """The noise itself, its weight found for each noise level; SDS has weight 1 everywhere. Needs no network.

    decay: share that the running averages keep at each step that sees their noise level
    """

    V = 1
    free: tuple[int, ...] = (0,)  # the variates whose weights are sought; those of the others are 0

    def __init__(self, *, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay {decay:g}: needs a number in [0, 1)")
        self.decay = decay
        self.gram = torch.zeros(LEVELS, self.V + 1, self.V + 1)  # running averages of products of (variates, f)

    def state(self) -> dict[str, Tensor]:
        """Returns the running averages, which ride in theta."""
        return {"gram": self.gram}

    def renewed(self, name: str, state: Float[Tensor, "L n n"], measured: Float[Tensor, "L n n"]
                ) -> Float[Tensor, "L n n"]:
        """Returns the averages, n = V + 1, after a step that measured these sums of products."""
        seen = measured.diagonal(dim1=1, dim2=2).sum(1) > 0
        return torch.where(seen.view(-1, 1, 1), self.decay * state + measured, state)

    def __call__(self, residual: Latents, baseline: float, sample: Sample) -> Latents:
        """Returns the residual less the variates, in the place of `baseline` times the noise; measures the mean
        weights, and the sums of products."""
        f, h = residual + baseline * sample.eps, self.variates(sample)
        mu = self.weights(baseline, self.gram)[sample.level].to(f)  # [B, V]
        sums = by_level(products([*h, f]).flatten(1), sample.level).float().view_as(self.gram)
        sample.measured.update({"gram": sums, **{f"mu_{i}": mu[:, i].mean() for i in range(self.V)}})
        return f - sum(mu[:, i].view(-1, 1, 1, 1) * h[i] for i in range(self.V))

    def variates(self, sample: Sample) -> list[Latents]:
        """Returns the V variates, each of mean zero."""
        return [sample.eps]

    def weights(self, baseline: float, gram: Float[Tensor, "L n n"]) -> Float[Tensor, "L V"]:
        """Returns the weights of running averages; those of the distillation itself, (`baseline`, 0), for levels
        that no step has seen."""
        V, free, gram = self.V, list(self.free), gram.double()
        G, r = gram[:, free][:, :, free], gram[:, free, V]
        ridge = RIDGE * G.diagonal(dim1=1, dim2=2).mean(1)
        unseen = ridge == 0
        G = G + torch.where(unseen, 1, ridge).view(-1, 1, 1) * torch.eye(len(free), device=G.device)
        mu = gram.new_zeros(len(gram), V)
        mu[:, free] = torch.linalg.solve(G, r)
        mu[unseen, 0] = baseline
        return mu


class Stein(Noise):
    """The noise, and a variate made of a depth estimator by Stein's identity (SSD).

    The estimator sees what the prior's autoencoder, or `decoder`, makes of x_t.

    phi: what is compared of the render and of the estimate from x_t: depth: one minus the correlation of inverse depths;
        normal: one minus the mean cosine between the normals of both as reliefs
    noise: whether the noise is a variate of its own; false: the estimator's alone, as in the paper, which at high noise
        has more variance than SDS
    """

    V = 2

    def __init__(self, estimator: Estimator, decoder: Decoder | None = None, *, phi: Literal["depth", "normal"] = "depth",
                 noise: bool = True, **keys: Any) -> None:
        super().__init__(**keys)
        self.estimator, self.decoder, self.free = estimator, decoder, (0, 1) if noise else (1,)
        self.compare = {"depth": correlation, "normal": alignment}[phi]

    def variates(self, sample: Sample) -> list[Tensor]:
        """Returns the noise and h; measures the mean of phi."""
        with torch.enable_grad():
            x_t = sample.x_t.detach().requires_grad_()
            phi = self.phi(x_t, sample)
            slope, = torch.autograd.grad(GRAD_SCALE * phi.sum(), x_t)
        sample.measured["phi"] = phi.detach().mean()
        sigma = alpha_sigma(sample.prior, sample.t)[1]
        return [sample.eps, steins(sample.eps, phi.detach(), slope / GRAD_SCALE, sigma)]

    def phi(self, x_t: Latents, sample: Sample) -> Float[Tensor, " B"]:
        """Returns phi, differentiable in x_t; the render is held fixed. It is 1 where either depth is constant."""
        found = self.estimator((self.decoder or sample.prior.pictures)(x_t))
        assert sample.image is not None
        true, seen = inverse_depth(sample.image, (found.shape[1], found.shape[2]))
        return 1 - self.compare(found, true, seen)


def steins(eps: Latents, phi: Float[Tensor, " B"], slope: Latents, sigma: Tensor) -> Latents:
    """Returns eps phi - sigma slope, for phi and its gradient in x_t."""
    return eps * phi.view(-1, 1, 1, 1) - sigma * slope


def products(vectors: list[Tensor]) -> Float[Tensor, "B n n"]:
    """Returns the inner products of n vectors of each view."""
    rows = torch.stack([vector.flatten(1) for vector in vectors], 1)
    return rows @ rows.mT
