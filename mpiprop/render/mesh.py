"""Rendering of surfaces: what each pixel centre sees, shaded, with antialiased silhouettes (Magic3D, section 4.2).

Letters: B views, H x W pixels, M vertices and F faces of the surface, S pixels that it covers.
"""

from collections.abc import Collection
from typing import Literal

import torch
from torch.nn.functional import avg_pool2d, normalize

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.geometry.triangles import vertex_normals
from mpiprop.render import nvdiffrast, raster
from mpiprop.render.base import NORMALS, Background, Renderer, Shade
from mpiprop.render.raster import clip, neighbours, sample_texture
from mpiprop.shapes.surfaces.base import Surface, TexturedSurface
from mpiprop.views.cameras import Image, Triangles, Views


class Mesh(Renderer):
    """A renderer of shapes that have a surface.

    near: distance of the near plane (world units)
    far: distance of the far plane (world units)
    backend: what rasterises: "torch" (any device) or "nvdiffrast" (CUDA, its licence is not for commercial use)
    supersampling: so many times as many pixels a side are rendered, and their means shown
    """

    draws, makes = Surface, frozenset({"surface", "normals"})

    def __init__(self, *, near: float = 0.1, far: float = 100.0, backend: Literal["torch", "nvdiffrast"] = "torch",
                 supersampling: int = 1) -> None:
        self.near, self.far, self.supersampling = near, far, supersampling
        if supersampling < 1:
            raise UserError(f"supersampling {supersampling}: needs at least 1")
        self.tool = raster if backend == "torch" else nvdiffrast

    def __call__(self, shape: Surface, shade: Shade, background: Background, views: Views,
                 rng: Streams | None = None, needs: Collection[str] = NORMALS) -> Image:
        """The image of `shape`'s surface before `background`; differentiable in all parameters. The normals of the image
        are there whether asked for or not."""
        vertices, faces = shape.surface()
        views = views.resized((views.size[0] * self.supersampling, views.size[1] * self.supersampling))
        positions = clip(views, vertices, self.near, self.far)
        fragments = self.tool.rasterize(positions, faces, views.size)
        seen = torch.cat([vertices, vertex_normals(vertices, faces)], -1)
        points, normal = self.tool.interpolate(seen[None], faces, fragments).split(3, -1)
        hit = fragments.face >= 0
        normal = normalize(normal, dim=-1)
        origins, directions = views.rays()
        light = views.light[:, None, None].expand_as(points)
        if not isinstance(shape, TexturedSurface):
            features = shape.features(points[hit])
        else:
            skin = shape.skin()
            uv = self.tool.interpolate(skin.uv[None], skin.corners, fragments)[hit]
            features = sample_texture(skin.features, torch.stack([uv[:, 0], 1 - uv[:, 1]], -1))
        colour = shade(features, points[hit], normal[hit], light[hit])
        rgb = (behind := background(directions)).masked_scatter(hit[..., None], colour)
        depth = ((points - origins) * directions).sum(-1, keepdim=True) * hit[..., None]
        layers = torch.cat([rgb, hit[..., None].to(rgb), normal], -1)
        rgb, opacity, normal = self.tool.antialias(layers, fragments, positions, faces, neighbours(faces)).split([3, 1, 3], -1)
        layers = [rgb, opacity, depth, normal, behind]
        if self.supersampling > 1:
            layers = [avg_pool2d(layer.permute(0, 3, 1, 2), self.supersampling).permute(0, 2, 3, 1) for layer in layers]
        rgb, opacity, depth, normal, behind = layers
        return Image(rgb, opacity, depth, normal, surface=Triangles(vertices, faces), behind=behind)
