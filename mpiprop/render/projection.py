"""Colours of a surface from pictures of it (DreamGaussian, section 3.3): each point takes its colour from the first of the
views that see it well.

Letters: K points on the surface, B views, H x W pixels.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from mpiprop.views.cameras import Views, orbit
from mpiprop.render.raster import clip, interpolate, rasterize

FACING = 0.5  # least cosine between the normal and what leads to the camera
AROUND = (0, 45, -45, 90, -90, 135, -135, 180)  # degrees from the front
ABOVE = (0, -45, 45)  # degrees; after these rings the view from below and that from above
SLACK = 3.0  # pixels: by how much farther than what the pixel sees a point may be, at the steepest angle


def all_around(distance: float, fovy: float, size: int) -> Views:
    """26 views of the origin at a distance (world units) with a field of view (rad): three rings, from below, from above."""
    azimuths = torch.tensor([*AROUND * len(ABOVE), 0, 0]) * (math.pi / 180)
    elevations = torch.tensor([*(angle for angle in ABOVE for _ in AROUND), -89.9, 89.9]) * (math.pi / 180)
    return orbit(azimuths, elevations, distance, fovy, (size, size))


@torch.no_grad()
def project(x: Float[Tensor, "K 3"], normals: Float[Tensor, "K 3"], vertices: Float[Tensor, "V 3"],
            faces: Int[Tensor, "F 3"], views: Views, pictures: Float[Tensor, "B H W 3"], opaque: Shaped[Tensor, "B H W 1"]
            ) -> tuple[Float[Tensor, "K 3"], Bool[Tensor, " K"]]:
    """Colours of points with outward unit normals on the mesh of `vertices` and `faces`, and which of them any view sees:
    one that faces it, that nothing is before, and whose picture is `opaque` > 0.5 there. The first view that does decides."""
    colours, found = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for i in range(len(views)):
        view, rest = views[i:i + 1], (~found).nonzero()[:, 0]
        camera = view.c2w[0, :3, 3]
        towards = camera - x[rest]
        facing = (normalize(towards, dim=-1) * normals[rest]).sum(-1) > FACING
        rest = rest[facing]
        place = clip(view, x[rest])[0]
        ndc = place[:, :2] / place[:, 3:]
        grid = (ndc * ndc.new_tensor([1, -1]))[None, None]  # row 0 is the top
        fragments = rasterize(clip(view, vertices), faces, view.size)
        seen = interpolate(vertices[None], faces, fragments)
        depth = (seen - camera).norm(dim=-1).masked_fill(fragments.face < 0, 0.0)  # 0 hides: nothing is seen there
        nearest = _at(depth[..., None], grid, "nearest")[:, 0]
        pixel = 2 * torch.tan(view.fovy / 2) / view.size[0] * towards[facing].norm(dim=-1)
        free = (towards[facing].norm(dim=-1) <= nearest + SLACK * pixel) & (ndc.abs() < 1).all(1)
        free &= (_at(opaque[i:i + 1].to(x), grid, "bilinear") > 0.5)[:, 0]
        colours[rest[free]] = _at(pictures[i:i + 1].to(x), grid, "bilinear")[free]
        found[rest[free]] = True
    return colours, found


def _at(picture: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Values [K, C] of a picture [1, H, W, C] at places [1, 1, K, 2] in [-1, 1], x to the right, y down."""
    found = grid_sample(picture.permute(0, 3, 1, 2), grid, mode=mode, padding_mode="border", align_corners=False)
    return found[0, :, 0].T
