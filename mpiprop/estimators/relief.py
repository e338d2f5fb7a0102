"""Comparisons of inverse depths that are each known up to scale and shift.

Letters: B pictures, H x W pixels; inverse depths and weights of pixels [B, H, W].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.views.cameras import Image

NOTHING = 1e-12  # variance below which a map counts as constant
HEIGHT = 0.25  # of one standard deviation of inverse depth in a relief (half widths of the picture)


@torch.no_grad()
def inverse_depth(image: Image, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the inverse depth of renders where something is seen, and the weight of each pixel: its opacity."""
    depth, opacity = (F.interpolate(value.movedim(-1, 1).float(), size, mode="bilinear", antialias=True)[:, 0]
                      for value in (image.depth, image.opacity))
    return opacity / depth.clamp_min(1e-6), opacity.clamp(0, 1)


def correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Returns Pearson's correlation [B]; 0 where one of the two is constant."""
    return (_share(weight) * _standardised(a, weight) * _standardised(b, weight)).sum((1, 2))


def alignment(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Returns the mean cosine [B] between the normals of reliefs, whose heights are inverse depths brought to one standard
    deviation; 0 where one of the two is constant."""
    heights = [_standardised(values, weight) for values in (a, b)]
    cosine = (_normals(heights[0]) * _normals(heights[1])).sum(1)
    varies = torch.stack([height.detach().abs().amax((1, 2)) > 0 for height in heights]).all(0)
    return varies * (_share(weight[:, :-1, :-1]) * cosine).sum((1, 2))


def _share(weight: Tensor) -> Tensor:
    return weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-6)


def _standardised(values: Tensor, weight: Tensor) -> Tensor:
    """Values of mean 0 and variance 1 under the weights; 0 where they are constant."""
    share = _share(weight)
    values = values - (share * values).sum((1, 2), keepdim=True)
    variance = (share * values.square()).sum((1, 2), keepdim=True)
    return torch.where(variance > NOTHING, values * variance.clamp_min(NOTHING).rsqrt(), 0)


def _normals(heights: Tensor) -> Tensor:
    """Unit normals [B, 3, H - 1, W - 1] by forward differences, towards the viewer."""
    H, W = heights.shape[1:]
    x, y = (HEIGHT * along for along in (heights.diff(dim=2)[:, :-1] * (W / 2), heights.diff(dim=1)[:, :, :-1] * (H / 2)))
    return F.normalize(torch.stack([-x, -y, torch.ones_like(x)], 1), dim=1)
