"""Reconstruction losses against the input picture, from its own camera (Zero-1-to-3 in threestudio; Magic123).

Letters: B views, H = W pixels, M of them the object's.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule, at
from mpiprop.core.streams import Streams
from mpiprop.guidance.base import Scalar
from mpiprop.views.cameras import Image, Views
from mpiprop.views.reference import Reference


class Likeness:
    """A weighted sum of reconstruction losses between a view and the picture.

    rgb: weight of the mean square of colour less the picture's where the object is, less the background's elsewhere
    mask: weight of the mean square of opacity less the mask
    depth: weight of the mean square, over the object, of depth less the picture's brought to it by scale and shift
    depth_rel: weight of 1 - Pearson's correlation, over the object, of depth with the picture's
    normal: weight of 1 - the mean cosine, over the object, between normals and the picture's
    threshold: opacity from which a pixel of the picture is the object's; null: as far as it is opaque
    facing: cosine between the surface's normal and the camera's axis above which a pixel counts for rgb, as in DreamGaussian's
        second stage (0.5); null: all count
    """

    def __init__(self, reference: Reference, *, rgb: Schedule = 500.0, mask: Schedule = 50.0, depth: Schedule = 0.0,
                 depth_rel: Schedule = 0.0, normal: Schedule = 0.0, threshold: float | None = 0.5,
                 facing: float | None = None) -> None:
        self.weights = {"rgb": rgb, "mask": mask, "depth": depth, "depth_rel": depth_rel, "normal": normal}
        for name, kind in (("depth", "depth"), ("depth_rel", "depth"), ("normal", "normal")):
            if self.weights[name] != 0 and getattr(reference, kind) is None:
                raise UserError(f"{name}: there is no picture of it beside the image (NAME_{kind}.png for NAME_rgba.png); add "
                                f"one, or set {name}: 0")
        if facing is not None and not 0 <= facing < 1:
            raise UserError(f"facing: needs a number in [0, 1), or null, got {facing:g}")
        self.reference, self.threshold, self.facing = reference, threshold, facing
        self.reads_normals = normal != 0 or facing is not None
        self._sizes: dict[tuple[int, torch.device], Reference] = {}

    def __call__(self, image: Image, views: Views, tau: int, rng: Streams) -> tuple[Scalar, dict[str, float]]:
        """Returns the weighted sum; numbers: the losses without weights, and psnr (dB)."""
        self.check(views, tau)
        picture = self.at(views.size[0], image.rgb.device)
        weights = {name: weight for name, schedule in self.weights.items() if (weight := at(schedule, tau))}
        inside, numbers = self.mask(picture), {"psnr": psnr(image, picture)}
        if self.facing is not None:  # pixels that do not count are given the target's colour
            counts = axes(image, views)[0] > self.facing
            image = replace(image, rgb=torch.where(counts, image.rgb, before(image, picture, inside)))
        losses = {name: LOSSES[name](image, views, picture, inside) for name in weights}
        numbers = {name: loss.item() for name, loss in losses.items()} | numbers
        nothing = 0 * image.rgb.sum()  # depends on the image even where every weight is 0
        return sum((weights[name] * loss for name, loss in losses.items()), nothing), numbers

    def check(self, views: Views, tau: int) -> None:
        """Raises UserError unless the only view is the picture's."""
        if len(views) != 1:
            raise UserError(f"Likeness: is given {len(views)} views; use Reference")

    def at(self, size: int, device: torch.device) -> Reference:
        """Returns the picture resized to `size` pixels a side."""
        if (size, device) not in self._sizes:
            self._sizes[size, device] = self.reference.resized(size).to(device)
        return self._sizes[size, device]

    def mask(self, picture: Reference) -> Float[Tensor, "H W 1"]:
        """Returns the object's mask in [0, 1]."""
        alpha = picture.rgba[..., 3:]
        return alpha if self.threshold is None else (alpha > self.threshold).to(alpha)


def rgb(image: Image, views: Views, picture: Reference, mask: Float[Tensor, "H W 1"]) -> Scalar:
    return mse_loss(image.rgb, before(image, picture, mask))


def mask(image: Image, views: Views, picture: Reference, mask: Float[Tensor, "H W 1"]) -> Scalar:
    return mse_loss(image.opacity, mask.expand_as(image.opacity))


def depth(image: Image, views: Views, picture: Reference, mask: Float[Tensor, "H W 1"]) -> Scalar:
    """Scale and shift are those of least loss, so their own gradient is zero and is left out."""
    ours, theirs = (_centred(depth, mask) for depth in (image.depth, picture.depth))
    scale = ((ours * theirs).sum() / theirs.square().sum().clamp(min=1e-12)).detach()
    return (ours - scale * theirs).square().mean()


def depth_rel(image: Image, views: Views, picture: Reference, mask: Float[Tensor, "H W 1"]) -> Scalar:
    ours, theirs = (_centred(depth, mask) for depth in (image.depth, picture.depth))
    return 1 - cosine_similarity(ours, theirs, dim=0)


def normal(image: Image, views: Views, picture: Reference, mask: Float[Tensor, "H W 1"]) -> Scalar:
    """Both normals are seen from the camera."""
    seen = torch.cat(axes(image, views), -1)
    assert picture.normal is not None  # the constructor has checked it
    where = (mask[..., 0] > 0.5).expand(seen.shape[:-1])
    return 1 - cosine_similarity(seen[where], picture.normal.expand_as(seen)[where], dim=-1).mean()


LOSSES: dict[str, Callable[[Image, Views, Reference, Tensor], Tensor]] = {
    "rgb": rgb, "mask": mask, "depth": depth, "depth_rel": depth_rel, "normal": normal}


def axes(image: Image, views: Views) -> tuple[Float[Tensor, "B H W 1"], ...]:
    """Returns the components of the normals towards the camera, upwards and to the left."""
    if image.normal is None:
        raise UserError("normal: the shape has no normals; set shape.normal, or normal: 0 and facing: null")
    right, up, back = views.c2w[:, None, None, :3, :3].to(image.normal).unbind(-1)
    return tuple((image.normal * axis).sum(-1, keepdim=True) for axis in (back, up, -right))


def before(image: Image, picture: Reference, mask: Float[Tensor, "H W 1"]) -> Float[Tensor, "B H W 3"]:
    """Returns the picture's object over the background of the image."""
    if image.behind is None:
        raise UserError("guidance.reference: the renderer does not tell what is behind the object; use Volume")
    return picture.rgba[..., :3] * mask + image.behind * (1 - mask)


@torch.no_grad()
def psnr(image: Image, picture: Reference) -> float:
    """Peak signal-to-noise ratio (dB) of views against the picture as it is, before their background."""
    return -10 * mse_loss(image.rgb.clamp(0, 1), before(image, picture, picture.rgba[..., 3:])).log10().item()


def _centred(depth: Tensor | None, mask: Tensor) -> Tensor:
    """Depth [M], of [H, W, 1] or of the one view [1, H, W, 1], over the object and less its mean."""
    assert depth is not None  # the constructor has checked it
    inside = depth.view(mask.shape)[mask > 0.5]
    return inside - inside.mean()
