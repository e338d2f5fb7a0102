"""Regularizers of renders, the `penalties` of a term (DreamFusion, section 3.2 and appendix A.2; Magic3D; HiFA;
threestudio's Zero-1-to-3).

Letters: B views, H x W pixels, S samples. Each takes an image and its views and returns a scalar: the mean over the views
of its loss for one, so that a batch may be evaluated in parts.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.guidance.base import Scalar
from mpiprop.views.cameras import Image, Samples, Triangles, Views
from mpiprop.guidance import surface_losses as surfaces


def orient(image: Image, views: Views) -> Scalar:
    """Sum over samples of weight max(0, normal . direction)^2, per pixel that is not empty: normals that face away from
    the camera. The weights are not differentiated (Ref-NeRF, eq. 11)."""
    samples = _samples(image, "orient")
    if samples.normals is None:
        raise UserError(lacking("orient", {"samples"}))
    away = (samples.normals * samples.directions).sum(-1).clamp(min=0)
    summed = torch.zeros_like(image.opacity).view(-1).index_add(0, samples.ray, samples.weights.detach() * away.square())
    return _mean_where(image.opacity > 0, summed.view_as(image.opacity))


def sparsity(image: Image, views: Views) -> Scalar:
    """Mean of sqrt(opacity^2 + 0.01)."""
    return (image.opacity.square() + 0.01).sqrt().mean()


def opaque(image: Image, views: Views) -> Scalar:
    """Mean binary entropy of the opacity, held in [0.001, 0.999]: pixels half covered."""
    opacity = image.opacity.clamp(1e-3, 1 - 1e-3)
    return -(opacity * opacity.log() + (1 - opacity) * (1 - opacity).log()).mean()


def z_variance(image: Image, views: Views) -> Scalar:
    """Mean, over pixels of opacity > 0.5, of the variance of depth under the weights normalised to one."""
    samples = _samples(image, "z_variance")
    opacity = image.opacity.reshape(-1)
    share = samples.weights / opacity.clamp(min=1e-5)[samples.ray]
    zeros = torch.zeros_like(opacity)
    mean = zeros.index_add(0, samples.ray, share * samples.t)
    variance = zeros.index_add(0, samples.ray, share * (samples.t - mean[samples.ray]).square())
    return _mean_where(image.opacity > 0.5, variance.view_as(image.opacity))


def eikonal(image: Image, views: Views) -> Scalar:
    """Mean over samples of (|slope| - 1)^2: a signed distance grows by one per world unit (TextMesh, eq. 5)."""
    if (slope := _samples(image, "eikonal").slope) is None:
        raise UserError(lacking("eikonal", {"samples"}))
    return surfaces.eikonal(slope)


def normal_consistency(image: Image, views: Views) -> Scalar:
    """Mean over the edges of 1 - cos between the normals of the vertices at both ends (Magic3D)."""
    surface = _surface(image, "normal_consistency")
    return surfaces.normal_consistency(surface.vertices, surface.faces)


def laplacian(image: Image, views: Views) -> Scalar:
    """Mean over the vertices of |sum over neighbours of v - neighbour| (ProlificDreamer)."""
    surface = _surface(image, "laplacian")
    return surfaces.laplacian(surface.vertices, surface.faces)


def normal_smooth(image: Image, views: Views) -> Scalar:
    """Mean of the squared differences between the normals of pixels side by side, and of those one above the other, as a
    picture (n + 1) / 2 on black shows them (threestudio's)."""
    if image.normal is None:
        raise UserError(lacking("normal_smooth", set()))
    shown = (image.normal / 2 + 0.5) * image.opacity
    return shown.diff(dim=1).square().mean() + shown.diff(dim=2).square().mean()


def normal_smooth_3d(image: Image, views: Views) -> Scalar:
    """Mean over samples of |n(x) - n(x + d)|, each coordinate for itself, d normal with a deviation of 0.01 (threestudio's,
    whose d differs from sample to sample of a ray)."""
    samples = _samples(image, "3d_normal_smooth")
    if samples.normals is None or samples.nearby is None:
        raise UserError(lacking("3d_normal_smooth", {"samples"}))
    rays, views_ = image.opacity[0].numel(), len(image.opacity)
    bent = (samples.normals - samples.nearby(0.01)).abs().mean(-1)
    view = samples.ray // rays
    count = torch.bincount(view, minlength=views_).clamp(min=1)
    return (bent.new_zeros(views_).index_add(0, view, bent) / count).mean()


PENALTIES: dict[str, Callable[[Image, Views], Tensor]] = {
    "orient": orient, "sparsity": sparsity, "opaque": opaque, "z_variance": z_variance, "eikonal": eikonal,
    "normal_consistency": normal_consistency, "laplacian": laplacian, "normal_smooth": normal_smooth,
    "3d_normal_smooth": normal_smooth_3d}
NEEDS: dict[str, tuple[str, ...]] = {  # what an image must have for each
    "orient": ("samples", "normals"), "z_variance": ("samples",), "eikonal": ("samples", "slope"),
    "normal_consistency": ("surface",), "laplacian": ("surface",), "normal_smooth": ("normals",),
    "3d_normal_smooth": ("samples", "normals")}
LACKING = {"samples": "the image has no samples; use Volume or remove the penalty",
           "surface": "the image has no surface; use Mesh or remove the penalty",
           "normals": "the shape has no normals; set shape.normal or remove the penalty",
           "slope": "the shape is no signed distance with normals; use SDF or remove the penalty"}


def lacking(name: str, has: Collection[str]) -> str:
    """Returns why penalty `name` cannot be computed of images that have only these of LACKING; empty if it can."""
    return next((f"penalties.{name}: {LACKING[need]}" for need in NEEDS.get(name, ()) if need not in has), "")


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Mean over the views of the mean of `values` [B, H, W, 1] over the chosen pixels of each."""
    chosen, values = chosen.flatten(1), values.flatten(1)
    return (values.where(chosen, 0).sum(1) / chosen.sum(1).clamp(min=1)).mean()


def _samples(image: Image, name: str) -> Samples:
    if image.samples is None:
        raise UserError(lacking(name, set()))
    return image.samples


def _surface(image: Image, name: str) -> Triangles:
    if image.surface is None:
        raise UserError(lacking(name, set()))
    return image.surface
