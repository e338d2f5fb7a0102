"""The density and the colour that a cloud of Gaussians has in space, asked where it matters (DreamGaussian, section 3.2).

Density is the sum of opacity exp(-m / 2) over the Gaussians, m the squared Mahalanobis distance. Points are taken in blocks; of
each Gaussian it is known how much it adds at most inside the block's box, and those that add least are left out as long as all
of that together stays below TOLERANCE. Letters: N Gaussians, Q points, C Gaussians that reach a block.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.core.sums import cumulative
from mpiprop.geometry.harmonics import C0
from mpiprop.geometry.quaternions import matrices
from mpiprop.shapes.clouds.base import Splats

TOLERANCE = 1e-3  # of a density whose surface is around 1
BLOCK = 1024  # points in a block, about
TINY = 1e-12  # world units: keeps flat Gaussians invertible


@torch.no_grad()
def density(splats: Splats, x: Float[Tensor, "Q 3"]) -> Float[Tensor, " Q"]:
    """The density at points, within TOLERANCE below the sum over all Gaussians."""
    total = x.new_zeros(len(x))
    for points, some, weight in _near(splats, x):
        total[points] = weight @ splats.opacities[some]
    return total


@torch.no_grad()
def colour(splats: Splats, x: Float[Tensor, "Q 3"]) -> Float[Tensor, "Q 3"]:
    """The colours in [0, 1] at points: the mean over the Gaussians by what they add to the density there,
    without what depends on the direction; where none reaches, the nearest one's."""
    plain = (0.5 + C0 * splats.harmonics[:, 0]).clamp(0, 1)
    total, share = x.new_zeros(len(x), 3), x.new_zeros(len(x), 1)
    for points, some, weight in _near(splats, x):
        weight = weight * splats.opacities[some]
        total[points], share[points] = weight @ plain[some], weight.sum(1, keepdim=True)
    lost = (share[:, 0] < TOLERANCE).nonzero()[:, 0]
    for part in lost.split(BLOCK):
        total[part], share[part] = plain[torch.cdist(x[part], splats.means).argmin(1)], 1.0
    return total / share


def _near(splats: Splats, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each block of near points that a Gaussian reaches: which points, which Gaussians, and exp(-m / 2) [points, C]."""
    means, opacities = splats.means.double(), splats.opacities
    axes = matrices(splats.rotations.double()).permute(2, 0, 1).contiguous()
    scales = splats.scales.double().clamp(min=TINY)[:, None]
    whiten = axes / scales  # columns: axes over deviations
    precision = whiten @ whiten.mT
    spread = (axes * scales).square().sum(-1).sqrt().float()  # deviations along x, y, z
    middles = splats.means.float()
    least = TOLERANCE / 2 / len(opacities)
    reach = (2 * (opacities / least).clamp(min=1).log()).sqrt()  # in deviations
    for points in _blocks(x):
        some = x[points]
        low, high = some.aminmax(dim=0)
        centre = (low + high) / 2
        far = (((middles - centre).abs() - (high - low) / 2) / spread).amax(1).clamp(min=0)  # at least, from any point
        near = (far < reach).nonzero()[:, 0]
        most, order = (opacities[near] * (far[near].square() * -0.5).exp()).sort()
        near = near[order[cumulative(most) > TOLERANCE / 2]]
        if len(near):
            mean = means[near] - centre
            pull = (precision[near] @ mean[:, :, None])[:, :, 0]
            a, b, c = (some - centre).double().unbind(1)
            monomials = torch.stack([a * a, b * b, c * c, a * b, a * c, b * c, a, b, c, torch.ones_like(a)], 1)
            (xx, xy, xz), (_, yy, yz), (_, _, zz) = precision[near].permute(1, 2, 0)
            factors = torch.stack([xx, yy, zz, 2 * xy, 2 * xz, 2 * yz, *(-2 * pull.T), (mean * pull).sum(1)])
            yield points, near, (monomials @ (factors * -0.5)).float().clamp_(max=0).exp_()


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """Indices of points [Q, 3] that share a cell, one cell after another."""
    if not len(x):
        return
    low, high = x.aminmax(dim=0)
    extent = (high - low).clamp(min=TINY)
    side = (extent.prod() * BLOCK / len(x)) ** (1 / 3)
    cells = (extent / side).ceil().clamp(1, 1 << 20).long()
    place = ((x - low) / extent * cells).long().clamp(max=cells - 1)
    _, order = (number := (place[:, 0] * cells[1] + place[:, 1]) * cells[2] + place[:, 2]).sort(stable=True)
    yield from order.split(number.unique(return_counts=True)[1].tolist())
