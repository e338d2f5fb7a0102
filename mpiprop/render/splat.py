"""Rasterising clouds of Gaussians (Kerbl et al. 2023, sections 4 and 6; projection after Zwicker et al. 2001).

Letters: B views, H x W pixels, N Gaussians, K of them in front of a camera, nearest first, M fragments: pairs of a Gaussian
and a pixel that it covers. The ellipse of alpha >= 1/255 tells each Gaussian's rows, and in each row its columns, so that
only pairs that count are ever listed; one stable sort by pixel puts each pixel's fragments one after another, front to back.
"""

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from mpiprop.core.streams import Streams
from mpiprop.core.sums import cumulative
from mpiprop.geometry.harmonics import harmonics
from mpiprop.geometry.quaternions import matrices
from mpiprop.render.base import NORMALS, Background, Renderer, Shade
from mpiprop.shapes.clouds.base import Cloud, Splats
from mpiprop.views.cameras import Image, Screen, Views

BLUR = 0.3  # px^2, added to the covariance: none is thinner than a pixel
LEAST, MOST = 1 / 255, 0.99  # alphas below are nothing, those above are held
STOP = 1e-4  # the fragment that would leave less light behind it ends its pixel
FIELD = 1.3  # half fields of view from the axis beyond which the projection is not linearised further out

Layers = tuple[Float[Tensor, "B H W 5"], Screen]  # colour, depth and opacity; where the Gaussians are


class Splat(Renderer):
    """A renderer of clouds of Gaussians.

    near: distance along the axis at which a Gaussian's centre is seen at the earliest (world units)
    far: and at the latest (world units)
    backend: "torch" (any device) or "gsplat" (CUDA), whose gradients differ in their last bits each time; auto: torch
    """

    draws = Cloud

    def __init__(self, *, near: float = 0.2, far: float = 100.0,
                 backend: Literal["auto", "torch", "gsplat"] = "auto") -> None:
        self.near, self.far = near, far
        self.rasterize = _fast if backend == "gsplat" else rasterize

    def __call__(self, shape: Cloud, shade: Shade, background: Background, views: Views,
                 rng: Streams | None = None, needs: Collection[str] = NORMALS) -> Image:
        """The image of `shape`'s Gaussians, which have colours of their own, before `background`; differentiable in all
        parameters. Colours are held in [0, 1]; depth is the distance of the centres; there are no normals."""
        splats = shape.splats()
        layers, screen = self.rasterize(splats, colours(splats, views), views, self.near, self.far)
        rgb, depth, opacity = layers.split([3, 1, 1], -1)
        rgb = torch.addcmul(rgb, 1 - opacity, behind := background(views.rays()[1]))
        return Image(rgb.clamp(0, 1), opacity, depth, screen=screen, behind=behind)


def colours(splats: Splats, views: Views) -> Float[Tensor, "B N 4"]:
    """What each camera sees of each Gaussian: red, green, blue >= 0, and its distance."""
    towards = splats.means - views.c2w[:, None, :3, 3]
    K = splats.harmonics.shape[1]
    if K == 1:
        seen = (harmonics(splats.means[:1], 1) * splats.harmonics[:, 0]).expand(len(views), -1, -1)
    else:
        basis = harmonics(normalize(towards, dim=-1).flatten(0, 1), K).view(K, len(views), -1)
        seen = torch.einsum("kbn,nkc->bnc", basis, splats.harmonics)
    return torch.cat([(seen + 0.5).clamp(min=0), towards.norm(dim=-1, keepdim=True)], -1)


def rasterize(splats: Splats, channels: Float[Tensor, "B N 4"], views: Views, near: float, far: float) -> Layers:
    """Channels of the Gaussians composited, and opacity."""
    screen, covariance, depth = project(splats, views)
    if screen.requires_grad:
        screen.retain_grad()
    ahead = (depth > near) & (depth < far) & (splats.opacities > LEAST)
    layers, visible = [], torch.zeros_like(ahead)
    for b in range(len(views)):
        front = ahead[b].nonzero()[:, 0]
        front = front[depth[b, front].argsort(stable=True)]
        layer, covers = _Composite.apply(screen[b], covariance[b], splats.opacities, channels[b], front, views.size)
        layers.append(layer.unflatten(0, views.size))
        visible[b, front] = covers
    return torch.stack(layers), Screen(screen, visible)


def project(splats: Splats, views: Views
            ) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B 3 N"], Float[Tensor, "B N"]]:
    """Centres (pixels) and covariances xx, xy, yy (px^2, blurred) on the screen, and depths along the axis,
    not differentiable. What is behind a camera is anywhere."""
    H, W = views.size
    axes = (views.c2w[:, :3, :3] * views.c2w.new_tensor([1, -1, -1])).mT  # to right, down, forward
    place = axes @ (splats.means.T - views.c2w[:, :3, 3:])
    depth = place[:, 2].detach()
    z = torch.where(depth > 0, place[:, 2], 1.0)
    tangents = place[:, :2] / z[:, None]
    focal = (H / (2 * torch.tan(views.fovy / 2)))[:, None]
    centre = focal[:, None] * tangents + views.c2w.new_tensor([[W / 2], [H / 2]])
    edge = FIELD * torch.tan(views.fovy / 2)[:, None]
    x, y = tangents[:, 0].clamp(-edge * W / H, edge * W / H), tangents[:, 1].clamp(-edge, edge)
    right, down, forward = (axes @ _spread(splats).flatten(1)).view(len(views), 3, 3, -1).unbind(1)  # [B, 3, N] each
    a, b = right - x[:, None] * forward, down - y[:, None] * forward
    covariance = (focal / z).square()[:, None] * torch.stack([(a * a).sum(1), (a * b).sum(1), (b * b).sum(1)], 1)
    return centre.mT.contiguous(), covariance + covariance.new_tensor([[BLUR], [0], [BLUR]]), depth


def _spread(splats: Splats) -> Tensor:
    """The axes of each Gaussian, as long as its standard deviations: [3 (world), 3 (axis), N]."""
    return matrices(splats.rotations) * splats.scales.T


class _Composite(torch.autograd.Function):
    """Channels and opacity [H * W, 5] of one view, and which of the K Gaussians `front` cover a pixel.

    Everything is done number by number, on vectors of M: one-dimensional gathers and sums are several times faster than rows.
    """

    @staticmethod
    def forward(ctx, screen: Tensor, covariance: Tensor, opacities: Tensor, channels: Tensor, front: Tensor,
                size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        H, W = size
        u, v = screen.index_select(0, front).T.contiguous()
        xx, xy, yy = covariance.index_select(1, front)
        opacity, values = opacities.index_select(0, front), channels.index_select(0, front).T.contiguous()
        determinant = xx * yy - xy * xy
        conic = torch.stack([yy / determinant, -xy / determinant, xx / determinant])  # of power = half its square form
        gaussian, pixel, covers = _fragments(u, v, conic, yy, opacity, H, W)
        dx, dy, reach = _offsets(u, v, conic, gaussian, pixel, W)
        alpha = (opacity.index_select(0, gaussian) * reach).clamp_(max=MOST)
        after = cumulative(torch.log1p(-alpha).double())
        ends = torch.bincount(pixel, minlength=H * W).cumsum_(0)
        before = torch.cat([after.new_zeros(1), after])[torch.cat([ends.new_zeros(1), ends[:-1]])]  # of each pixel's first
        after = (after - before.index_select(0, pixel)).to(alpha.dtype).exp_()  # light left behind each fragment
        kept = (after >= STOP).nonzero()[:, 0]
        if len(kept) < len(pixel):
            gaussian, pixel, alpha, after, dx, dy, reach = (
                each.index_select(0, kept) for each in (gaussian, pixel, alpha, after, dx, dy, reach))
        weight = alpha * after / (1 - alpha)
        layer = u.new_zeros(5, H * W)
        for total, value in zip(layer, values):
            total.index_add_(0, pixel, value.index_select(0, gaussian).mul_(weight))
        layer[4].index_add_(0, pixel, weight)
        ctx.save_for_backward(front, gaussian, pixel, dx, dy, reach, alpha, after, weight, conic, opacity, values)
        ctx.N = len(opacities)
        ctx.mark_non_differentiable(covers)
        return layer.T.contiguous(), covers

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        front, gaussian, pixel, dx, dy, reach, alpha, after, weight, conic, opacity, values = ctx.saved_tensors
        grads = [each.index_select(0, pixel) for each in grad.T.contiguous()]
        wanted = grads[4].clone()
        for value, each in zip(values, grads):
            wanted.addcmul_(value.index_select(0, gaussian), each)
        behind = cumulative((weight * wanted).double())
        last = torch.bincount(pixel, minlength=1).cumsum_(0).sub_(1).clamp_(min=0)  # fragment of each pixel
        hidden = (behind[last] if len(behind) else behind).index_select(0, pixel).sub_(behind).to(weight.dtype)
        slope = (after * wanted - hidden).div_(1 - alpha).mul_(reach).masked_fill_(alpha >= MOST, 0)  # dL / d reach / opacity
        a, b, c = (each.index_select(0, gaussian) for each in conic)
        power = -slope * opacity.index_select(0, gaussian)
        px, py = power * dx, power * dy
        parts = [-(a * px + b * py), -(b * px + c * py), px * dx / 2, px * dy, py * dy / 2, slope,
                 *(each.mul_(weight) for each in grads[:4])]
        total = weight.new_zeros(10, len(opacity))
        for row, part in zip(total, parts):
            row.index_add_(0, gaussian, part)
        total = weight.new_zeros(10, ctx.N).index_copy_(1, front, total)
        screen, form, seen, channels = total.split([2, 3, 1, 4])
        return screen.T, _of_inverse(form, conic, front), seen[0], channels.T, None, None


def _of_inverse(form: Tensor, conic: Tensor, front: Tensor) -> Tensor:
    """The gradient in covariances xx, xy, yy [3, N] of one in their inverses: dC = -C dS C, summed over both xy."""
    a, b, c = conic
    da, db, dc = form[:, front]
    db = db / 2
    out = torch.zeros_like(form)
    out[:, front] = -torch.stack([a * (a * da + b * db) + b * (a * db + b * dc),
                                  2 * (b * (a * da + b * db) + c * (a * db + b * dc)),
                                  b * (b * da + c * db) + c * (b * db + c * dc)])
    return out


def _offsets(u: Tensor, v: Tensor, conic: Tensor, gaussian: Tensor, pixel: Tensor,
             W: int) -> tuple[Tensor, Tensor, Tensor]:
    """From a Gaussian's centre to the middle of a pixel: dx [M], dy [M] (pixels), and what is left there of its opacity."""
    middles = torch.arange(W * (int(pixel[-1]) // W + 1) if len(pixel) else 0, device=u.device)  # a table beats dividing
    dx = (middles % W + 0.5).to(u.dtype).index_select(0, pixel).sub_(u.index_select(0, gaussian))
    dy = (middles // W + 0.5).to(u.dtype).index_select(0, pixel).sub_(v.index_select(0, gaussian))
    a, b, c = (each.index_select(0, gaussian) for each in conic)
    power = (a * dx).addcmul_(b, dy, value=2).mul_(dx).addcmul_(c * dy, dy)
    return dx, dy, power.mul_(-0.5).exp_()


def _fragments(u: Tensor, v: Tensor, conic: Tensor, yy: Tensor, opacity: Tensor, H: int,
               W: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian [M] and pixel [M] of all pairs with alpha >= 1/255, by pixel and then front to back; which of the K have any."""
    a, b, _ = conic
    reach = 2 * torch.log(opacity / LEAST)  # square of the distance, in standard deviations, where alpha is the least
    rows, y = _spans(v, torch.sqrt(reach * yy), H)
    dy = y.to(v.dtype) + 0.5 - v.index_select(0, rows)
    half = (reach / a).index_select(0, rows) - dy * dy * (1 / (yy * a)).index_select(0, rows)
    centre = u.index_select(0, rows) - (b / a).index_select(0, rows) * dy
    row, x = _spans(centre, half.clamp_(min=0).sqrt_(), W)
    narrow = torch.int16 if H * W <= 32767 else torch.int32  # radix sort: fewer bits, fewer passes
    pixel, order = (y * W).index_select(0, row).add_(x).to(narrow).sort(stable=True)
    gaussian = rows.index_select(0, row).index_select(0, order)
    covers = torch.zeros(len(u), dtype=torch.bool, device=u.device).index_fill_(0, gaussian, True)
    return gaussian, pixel.long(), covers


def _spans(centre: Tensor, half: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Which interval centre +- half, and which number i of 0 .. n - 1, for every middle i + 1/2 inside one."""
    first = torch.ceil(centre - half - 0.5).clamp_(0, n)
    count = (torch.floor(centre + half - 0.5).clamp_(-1, n - 1) - first + 1).clamp_(min=0).long()
    which = torch.repeat_interleave(count)
    begin = first.long() - count.cumsum(0) + count
    return which, torch.arange(len(which), device=centre.device).add_(begin.index_select(0, which))


def _fast(splats: Splats, channels: Tensor, views: Views, near: float, far: float) -> Layers:
    """The same by gsplat; by torch for previews of a CUDA run that are made elsewhere."""
    from mpiprop.render import gsplat

    return (gsplat.rasterize if splats.means.is_cuda else rasterize)(splats, channels, views, near, far)
