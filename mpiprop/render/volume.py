"""Volume rendering of density fields by quadrature along rays (Max 1995; DreamFusion, section 3.2).

Letters: B views, H x W pixels, R = B H W rays, S samples that survive, along all rays together, ray after ray.
Empty cells of the field's occupancy grid are stepped over; of the rest, samples that no light reaches (T < 1e-4) or
that hold almost nothing are dropped before anything is differentiated.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from mpiprop.core.errors import RunError, UserError
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.core.sums import cumulative
from mpiprop.render.base import NORMALS, Background, Renderer, Shade
from mpiprop.shapes.fields.base import Field, RaySteps
from mpiprop.shapes.fields.occupancy import threshold
from mpiprop.views.cameras import Image, Samples, Views

EARLY_STOP = 1e-4  # transmittance at which a ray ends


class Volume(Renderer):
    """A renderer of fields by equal steps along each ray through the box.

    samples: steps along the box's diagonal
    chunk: rays at a time in evaluation renders (bounds their memory)
    backend: what finds samples in occupied cells: "torch" (any device) or "nerfacc" (CUDA); auto: torch, so that results do
        not depend on what is installed
    """

    draws, makes = Field, frozenset({"samples"})

    def __init__(self, *, samples: int = 512, chunk: int = 16384,
                 backend: Literal["auto", "torch", "nerfacc"] = "auto") -> None:
        if samples < 1 or chunk < 1:
            raise UserError(f"samples {samples}, chunk {chunk}: need at least 1")
        self.samples, self.chunk = samples, chunk
        self.march = _march_nerfacc if backend == "nerfacc" else _march

    def ray_spacing(self, field: Field) -> float:
        """Returns the distance between samples along a ray (world units)."""
        return 1.732 * 2 * field.radius / self.samples  # the square root of 3 as all of the field rounds it

    def __call__(self, field: Field, shade: Shade, background: Background, views: Views,
                 rng: Streams | None = None, needs: Collection[str] = NORMALS) -> Image:
        """The image of `field` before `background` (colours of directions [B, H, W, 3]); rng None: evaluation, that is
        without jitter and in chunks, whose samples are not kept. Differentiable in all parameters."""
        normals = bool(needs)  # a slope comes with them
        origins, directions = views.rays()
        behind = background(directions)
        shape = directions.shape[:3]
        view = torch.arange(len(views), device=directions.device).repeat_interleave(shape[1] * shape[2])
        rays = (origins.reshape(-1, 3), directions.reshape(-1, 3), views.light[view])
        if rng is None:
            parts = [self._render(field, shade, *part, torch.zeros_like(part[0][:, 0]), normals)[0]
                     for part in zip(*(each.split(self.chunk) for each in rays))]
            channels, samples = torch.cat(parts), None
        else:
            jitter = rng.rows("render.jitter", uniform, len(view)).to(view.device)
            channels, samples = self._render(field, shade, *rays, jitter, normals)
            samples = replace(samples, nearby=partial(nearby_normals, field, samples, len(view), rng) if normals else None)
        rgb, opacity, depth, facing = channels.unflatten(0, shape).split([3, 1, 1, channels.shape[1] - 5], -1)
        rgb = torch.addcmul(rgb, 1 - opacity, behind)
        return Image(rgb, opacity, depth, normalize(facing, dim=-1) if facing.shape[-1] else None, samples, behind=behind)

    def _render(self, field: Field, shade: Shade, origins: Tensor, directions: Tensor, light: Tensor,
                jitter: Tensor, normals: bool) -> tuple[Tensor, Samples]:
        """Colour, opacity, depth and (where wanted) normal summed along each ray [R, 5 or 8], and the samples."""
        step = self.ray_spacing(field)
        least, occupied = 0.0, torch.ones(1, 1, 1, dtype=torch.bool, device=origins.device)
        if (grid := field.occupancy()) is not None:
            least = threshold(grid, step)
            occupied = grid * step > least
        with torch.no_grad():
            ray, t = self.march(origins, directions, occupied, field.radius, step, jitter)
            towards = directions[ray]
            positions = torch.addcmul(origins[ray], towards, t[:, None])
            density, values = field.probe(positions, normals, RaySteps(towards, step))
            passed = torch.exp(-_before(density.double() * step, ray, len(origins)))
            kept = ((passed >= EARLY_STOP) & (-torch.expm1(-density * step) >= least)).nonzero()[:, 0]
            ray, t, positions, towards = ray[kept], t[kept], positions[kept], towards[kept]
        at = values(kept)
        weights = composite_weights(at.density * step, ray, len(origins))
        colour = shade(at.features, positions, at.normals, light[ray])
        channels = [colour, torch.ones_like(t)[:, None], t[:, None]] + ([] if at.normals is None else [at.normals])
        summed = colour.new_zeros(len(origins), 8 if normals else 5)
        summed = summed.index_add(0, ray, torch.cat(channels, -1) * weights[:, None])
        return summed, Samples(ray, t, weights, positions, towards, at.normals, at.slope)


def nearby_normals(field: Field, samples: Samples, rays: int, rng: Streams, displacement: float
                   ) -> Float[Tensor, "S 3"]:
    """Normals at the samples displaced, those of one ray alike, by a normal deviate of that standard deviation."""
    offset = rng.rows("render.nearby", normal, rays, 3).to(samples.positions.device) * displacement
    return field.evaluate(samples.positions + offset[samples.ray], True).normals


def composite_weights(thickness: Float[Tensor, " S"], ray: Int[Tensor, " S"], rays: int) -> Float[Tensor, " S"]:
    """Shares w_i = T_i (1 - exp(-thickness_i)) of the samples in their pixels; T_i = exp(-sum of thickness before i
    on the same ray). `ray` ascending, in 0..rays-1. Differentiable once, in the thickness."""
    return _Weights.apply(thickness, ray, rays)


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, thickness: Tensor, ray: Tensor, rays: int) -> Tensor:
        before = _before(thickness.double(), ray, rays)
        passed = torch.exp(-before)
        weights = passed * -torch.expm1(-thickness.double())
        ctx.save_for_backward(weights, passed - weights, ray)
        ctx.rays = rays
        return weights.to(thickness.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        weights, passed_after, ray = ctx.saved_tensors
        hidden = _before((grad * weights).flip(0), (ctx.rays - 1 - ray).flip(0), ctx.rays).flip(0)
        return (grad * passed_after - hidden).to(grad.dtype), None, None


def _before(values: Tensor, ray: Tensor, rays: int) -> Tensor:
    """For each sample [S] the sum of `values` (float64) of the samples before it on its ray."""
    total = cumulative(values) - values
    first = torch.searchsorted(ray, torch.arange(rays, device=ray.device)).clamp(max=max(len(ray) - 1, 0))
    return total - total[first][ray] if len(ray) else total


def _march(origins: Tensor, directions: Tensor, occupied: Tensor, radius: float, step: float,
           jitter: Tensor) -> tuple[Tensor, Tensor]:
    """Ray [S] and distance [S] of those points (jitter + k + 1/2) step of each ray that lie in occupied cells."""
    cells = torch.tensor(occupied.shape, device=origins.device)
    width = 2 * radius / cells
    filled = occupied.nonzero()
    if not len(filled):
        return filled.new_zeros(0), origins.new_zeros(0)
    low, high = filled.amin(0) * width - radius, (filled.amax(0) + 1) * width - radius
    slope = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
    walls = torch.stack([(low - origins) * slope, (high - origins) * slope])
    enter, leave = walls.amin(0).amax(-1).clamp(min=0), walls.amax(0).amin(-1)
    first = torch.ceil(enter / step - jitter - 0.5)
    count = (torch.floor(leave / step - jitter - 0.5) - first + 1).clamp(min=0).long()
    ray = torch.arange(len(origins), device=origins.device).repeat_interleave(count)
    k = torch.arange(len(ray), device=ray.device) + (first.long() - count.cumsum(0) + count)[ray]
    t = (k + (jitter + 0.5)[ray]) * step
    cell = torch.addcmul(((origins + radius) / width)[ray], (directions / width)[ray], t[:, None])
    x, y, z = cell.long().clamp_(min=0).minimum(cells - 1).unbind(-1)
    inside = occupied[x, y, z].nonzero()[:, 0]
    return ray[inside], t[inside]


def _march_nerfacc(origins: Tensor, directions: Tensor, occupied: Tensor, radius: float, step: float,
                   jitter: Tensor) -> tuple[Tensor, Tensor]:
    """The same, found by nerfacc's traversal, which adds up steps: points at a cell's wall may count to the other side."""
    try:
        from nerfacc import traverse_grids
        from nerfacc.cuda._backend import _C as built
    except ImportError as error:
        raise RunError(f"nerfacc does not load ({error}); install it again, or set the renderer's backend: torch") from error
    if not origins.is_cuda:  # previews of a CUDA run, made elsewhere
        return _march(origins, directions, occupied, radius, step, jitter)
    if built is None:
        raise RunError("nerfacc is compiled when it is first used, and there is no nvcc; install the CUDA toolkit, or set the "
                       "renderer's backend: torch")
    box = torch.tensor([3 * [-radius] + 3 * [radius]], device=origins.device)
    near = jitter * step
    _, samples, _ = traverse_grids(
        origins.contiguous(), directions.contiguous(), occupied[None], box, near_planes=near,
        far_planes=torch.full_like(near, 1e10), step_size=step, cone_angle=0.0)
    ray = samples.ray_indices
    k = ((samples.vals - near[ray]) / step - 0.5).round()
    return ray, (k + (jitter + 0.5)[ray]) * step
