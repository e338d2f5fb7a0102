"""Volume rendering of fields whose empty cells are not known: samples go where a first pass finds matter (VolSDF, Yariv et
al. 2021, in the form that ScaleDreamer, Ma et al. 2024, uses for its generators).

Letters: B views, H x W pixels, R = B H W rays, K edges of intervals along a ray, S midpoints of intervals inside the box.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError, positive
from mpiprop.core.streams import Streams, uniform
from mpiprop.render.base import NORMALS, Background, Renderer, Shade
from mpiprop.render.volume import nearby_normals
from mpiprop.shapes.fields.base import Field
from mpiprop.views.cameras import Image, Samples, Views

MOST = 1 - 1e-6  # largest alpha of an interval


class VolSDF(Renderer):
    """A renderer of fields by proposal and importance sampling: even intervals first, then more where these have weight.

    The alpha of an interval is its density times its length, at most 1. Rays end where they leave the sphere around the box.

    near: distance at which rays begin (world units)
    proposal: even intervals along a ray
    importance: further edges, where the even intervals have weight
    chunk: rays at a time in evaluation renders (bounds their memory)
    slopes: the penalty `eikonal` looks at one of so many samples; at all of them where normals are needed anyway
    """

    draws, makes = Field, frozenset({"samples"})

    def __init__(self, *, near: float = 0.1, proposal: int = 128, importance: int = 64, chunk: int = 4096,
                 slopes: int = 1) -> None:
        positive(near=near, slopes=slopes)
        if proposal < 1 or importance < 0 or chunk < 1:
            raise UserError(f"proposal {proposal}, importance {importance}, chunk {chunk}: need at least 1, 0 and 1")
        self.near, self.proposal, self.importance, self.chunk, self.slopes = near, proposal, importance, chunk, slopes

    def ray_spacing(self, field: Field) -> float:
        """Returns the mean distance between even samples of rays through the middle (world units)."""
        return 2 * sqrt(3) * field.radius / self.proposal

    def __call__(self, field: Field, shade: Shade, background: Background, views: Views, rng: Streams | None = None,
                 needs: Collection[str] = NORMALS) -> Image:
        """As `Renderer`; the image's normals are not differentiated."""
        origins, directions = views.rays()
        behind, shape = background(directions), directions.shape[:3]
        R, each = shape.numel(), shape[1:].numel()
        limits = torch.stack(self._limits(field, views), 1).repeat_interleave(each, 0)
        view = torch.arange(len(views), device=directions.device).repeat_interleave(each)
        jitter = torch.full((R, 2), 0.5) if rng is None else rng.rows("render.jitter", uniform, R, 2)
        rays = origins.reshape(-1, 3), directions.reshape(-1, 3), views.light[view], limits, jitter.to(origins.device)
        if rng is None:
            channels = torch.cat([self._render(field, shade, *part, needs)[0]
                                  for part in zip(*(each.split(self.chunk) for each in rays))])
            samples = None
        else:
            channels, samples = self._render(field, shade, *rays, needs)
            samples = replace(samples, nearby=partial(nearby_normals, field, samples, R, rng) if "normals" in needs else None)
        rgb, opacity, depth, facing = channels.unflatten(0, shape).split([3, 1, 1, channels.shape[1] - 5], -1)
        rgb = torch.addcmul(rgb, 1 - opacity, behind)
        normal = normalize(facing.detach(), dim=-1) if facing.shape[-1] else None
        return Image(rgb, opacity, depth, normal, samples, behind=behind)

    def _limits(self, field: Field, views: Views) -> tuple[Tensor, Tensor]:
        """The distances [B] between which rays can be inside the box: where they may meet the sphere around it."""
        distance, reach = views.c2w[:, :3, 3].norm(dim=-1), field.radius * sqrt(3)
        return (distance - reach).clamp(min=self.near), distance + reach

    def _render(self, field: Field, shade: Shade, origins: Tensor, directions: Tensor, light: Tensor, limits: Tensor,
                jitter: Tensor, needs: Collection[str]) -> tuple[Tensor, Samples]:
        """Colour, opacity, depth and (where wanted) normal summed along each ray [R, 5 or 8], and the samples."""
        edges = self._edges(field, origins, directions, limits, jitter)
        ray, t, positions, inside = _midpoints(origins, directions, edges, field.radius)
        at = field.evaluate(positions, "normals" in needs or ("slope" in needs and self.slopes == 1))
        normals = at.normals if "normals" in needs else None
        weights = _weights(_spread(at.density, inside, edges), edges).flatten()[inside]
        colour = shade(at.features, positions, normals, light[ray])
        parts = [colour, torch.ones_like(t)[:, None], t[:, None]] + ([] if normals is None else [normals])
        summed = colour.new_zeros(len(origins), sum(part.shape[1] for part in parts))
        summed = summed.index_add(0, ray, torch.cat(parts, -1) * weights[:, None])
        slope = at.slope
        if slope is None and "slope" in needs:
            slope = field.evaluate(positions[::self.slopes], True).slope
        return summed, Samples(ray, t, weights, positions, directions[ray], normals, slope)

    @torch.no_grad()
    def _edges(self, field: Field, origins: Tensor, directions: Tensor, limits: Tensor, jitter: Tensor) -> Tensor:
        """The edges [R, K] of intervals, ascending: even ones, and those that the weights between them ask for."""
        near, far = limits.split(1, 1)
        edges = near + (far - near) * _even(self.proposal + 1, jitter[:, :1])
        if not self.importance:
            return edges
        _, _, positions, inside = _midpoints(origins, directions, edges, field.radius)
        weights = _weights(_spread(field.density(positions), inside, edges), edges)
        more = _inverse(edges, weights, _even(self.importance + 1, jitter[:, 1:]))
        return torch.cat([edges, more], 1).sort(1).values


def _even(n: int, jitter: Tensor) -> Tensor:
    """n even numbers in (0, 1) for each ray [R, n], all shifted by its jitter [R, 1] in [0, 1)."""
    return (torch.arange(n, device=jitter.device) + jitter) / n


def _midpoints(origins: Tensor, directions: Tensor, edges: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the intervals whose midpoint is inside the box: ray [S], distance [S], midpoint [S, 3], and their places [S] among all
    R (K - 1)."""
    t = (edges[:, :-1] + edges[:, 1:]) / 2
    positions = origins[:, None] + directions[:, None] * t[..., None]
    ray, k = (positions.abs() <= radius).all(-1).nonzero(as_tuple=True)
    return ray, t[ray, k], positions[ray, k], ray * t.shape[1] + k


def _spread(values: Tensor, inside: Tensor, edges: Tensor) -> Tensor:
    """Values [S] at their places among all intervals [R, K - 1], zero elsewhere."""
    R, K = edges.shape
    return values.new_zeros(R * (K - 1)).index_copy(0, inside, values).view(R, K - 1)


def _weights(density: Tensor, edges: Tensor) -> Tensor:
    """Shares [R, K - 1] of the intervals in their pixels: alpha_i (1 - alpha_1) ... (1 - alpha_{i - 1}).

    Sums along a ray are products with a triangular matrix, whose rounding is the same every time, on a GPU, too.
    """
    alpha = (density * edges.diff(dim=1)).clamp(max=MOST)
    K = alpha.shape[1]
    before = torch.ones(K, K, dtype=alpha.dtype, device=alpha.device).triu_(1)
    return alpha * torch.exp(torch.log1p(-alpha) @ before)


def _inverse(edges: Tensor, weights: Tensor, shares: Tensor) -> Tensor:
    """The places [R, n] up to which `shares` [R, n] of a ray's weight lie, which is spread evenly inside each interval; even
    places where a ray has none."""
    weights = weights + 1e-5  # empty rays are sampled evenly
    K = weights.shape[1]
    until = weights @ torch.ones(K, K, dtype=weights.dtype, device=weights.device).triu_()
    until = torch.cat([torch.zeros_like(until[:, :1]), until / until[:, -1:]], 1)
    right = torch.searchsorted(until, shares.contiguous(), right=True).clamp(1, K)
    low, high = until.gather(1, right - 1), until.gather(1, right)
    share = ((shares - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return torch.lerp(edges.gather(1, right - 1), edges.gather(1, right), share)
