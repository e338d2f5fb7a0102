"""The rasteriser of `splat` by gsplat (Ye et al., arXiv 2409.06765), an optional package for CUDA: all views in one call.

It holds alpha below 0.999 instead of 0.99 and adds up in another order, so images agree up to that; its atomic additions
make gradients differ in their last bits from run to run. Letters as in `splat`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mpiprop.core.errors import RunError
from mpiprop.shapes.clouds.base import Splats
from mpiprop.views.cameras import Screen, Views


def rasterize(splats: Splats, channels: Float[Tensor, "B N 4"], views: Views, near: float, far: float
              ) -> tuple[Float[Tensor, "B H W 5"], Screen]:
    """As splat.rasterize."""
    try:
        from gsplat import rasterization
        from gsplat.cuda._backend import _C as built
    except ImportError as error:
        raise RunError(f"gsplat does not load ({error}); install it again, or set the renderer's backend: torch") from error
    if built is None:
        raise RunError("gsplat is compiled when it is first used, and there is no nvcc; install the CUDA toolkit, or set the "
                       "renderer's backend: torch")
    (H, W), B, device = views.size, len(views), splats.means.device
    focal = H / (2 * torch.tan(views.fovy / 2))
    intrinsics = torch.zeros(B, 3, 3, device=device)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = W / 2, H / 2, 1.0
    turned = views.c2w * views.c2w.new_tensor([1, -1, -1, 1])  # gsplat's cameras: right, down, forward
    layers, opacity, info = rasterization(
        splats.means, splats.rotations, splats.scales, splats.opacities, channels, torch.linalg.inv(turned), intrinsics,
        W, H, near_plane=near, far_plane=far, eps2d=0.3, packed=False)
    means = info["means2d"]
    if means.requires_grad:
        means.retain_grad()
    visible = info["radii"].view(B, means.shape[1], -1).amin(-1) > 0
    return torch.cat([layers, opacity], -1), Screen(means, visible)
