"""How the shape of a stage begins with that of the stage before: with its numbers, its surface, or its surface and colours.

Letters: K texels of a texture that are on the surface, S x S texels, H x W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mpiprop.io.atlas import paint
from mpiprop.io.mesh import Mesh, extract
from mpiprop.render.projection import all_around, project
from mpiprop.objective.scene import Scene
from mpiprop.geometry.triangles import vertex_normals
from mpiprop.shapes.clouds.base import Cloud
from mpiprop.shapes.surfaces.base import TexturedSurface
from mpiprop.views.cameras import Views

TEXELS = 2  # along a pixel of the pictures that a texture is made of


def begin(scene: Scene, before: Scene, tau: int, view: Views, say: Callable[[str], None]) -> None:
    """Lets the shape of `scene` begin with that of another scene.

    before: the scene at the end of the stage before
    tau: number of steps of that stage
    view: one evaluation view of it, whose distance and field of view the renders for a texture have
    say: prints a line on what is made
    Raises UserError where the shape cannot begin with the other.
    """
    scene.shape.check_start(before.shape)
    if not isinstance(scene.shape, TexturedSurface):
        return scene.shape.begin_with(before.shape)
    mesh = extract(before, say=say, **scene.shape.handover_mesh)
    albedo = torch.from_numpy(mesh.texture.albedo)
    if isinstance(before.shape, Cloud):
        albedo = painted(mesh, before, tau, view, albedo)
    atlas = mesh.texture.atlas
    vertices, faces, uv, corners = map(torch.from_numpy, (mesh.vertices, mesh.faces, atlas.uv, atlas.faces))
    scene.shape.take(vertices, faces, uv, corners, scene.material.features(albedo))


def painted(mesh: Mesh, scene: Scene, tau: int, view: Views, albedo: Tensor) -> Tensor:
    """The texture [S, S, 3] `albedo` of a mesh of `scene`, repainted where renders from all around see its surface."""
    views = all_around(view.distance.item(), view.fovy.item(), len(albedo) // TEXELS)
    pictures, opaque = zip(*(_plain(scene, views[i:i + 1], tau) for i in range(len(views))))
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces).long()
    normals = vertex_normals(vertices, faces).numpy()
    where, x = mesh.texture.atlas.texels(mesh.vertices, len(albedo))
    _, normals = mesh.texture.atlas.texels(normals, len(albedo))
    colours, found = project(torch.from_numpy(x), torch.nn.functional.normalize(torch.from_numpy(normals), dim=-1), vertices,
                             faces, views, torch.cat(pictures), torch.cat(opaque))
    values = torch.where(found[:, None], colours, albedo.flatten(0, 1)[torch.from_numpy(where)])
    return torch.from_numpy(paint(where, values.numpy(), len(albedo)))


@torch.no_grad()
def _plain(scene: Scene, views: Views, tau: int) -> tuple[Tensor, Tensor]:
    """Colours [1, H, W, 3] of what is seen without the background that shines through, and its opacity [1, H, W, 1]."""
    image = scene.render(views, tau, needs=())
    share = image.opacity.clamp(min=0.1)
    rgb = ((image.rgb - (1 - image.opacity) * image.behind) / share).clamp(0, 1)
    return rgb.cpu(), image.opacity.cpu()
