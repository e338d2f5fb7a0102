"""Classifier-free guidance and its modifiers, as functions of predictions.

Letters: B images, K Perp-Neg negatives, predictions [B, C, h, w].
"""

from jaxtyping import Float
from torch import Tensor

from mpiprop.priors.base import Latents


def guided(uncond: Latents, cond: Latents, scale: float, rescale: float = 0.0) -> Latents:
    """Returns the noise prediction under classifier-free guidance (Ho and Salimans 2022, Eq. (6), whose w is scale - 1).

    `rescale` mixes in a prediction with the standard deviation of cond (Lin et al. 2023, Eqs. (15) and (16)).
    """
    eps = uncond + scale * (cond - uncond)
    if not rescale:
        return eps
    dims = tuple(range(1, eps.ndim))
    ratio = cond.std(dims, keepdim=True) / eps.std(dims, keepdim=True)
    return eps * (1 + rescale * (ratio - 1))


def perp_neg(uncond: Latents, cond: Latents, negatives: Float[Tensor, "K B C h w"],
             weights: Float[Tensor, "K B"]) -> Latents:
    """Returns the conditional prediction moved along what is perpendicular to it in the negatives (Armandpour et al. 2023).

    Projections are per sample.
    """
    e = (cond - uncond).flatten(1)  # [B, Chw]
    n = (negatives - uncond).flatten(2)  # [K, B, Chw]
    along = (n * e).sum(-1) / e.square().sum(-1).clamp_min(1e-6)  # [K, B]
    perp = n - along[..., None] * e
    return cond + (weights[..., None] * perp).sum(0).view_as(cond)
