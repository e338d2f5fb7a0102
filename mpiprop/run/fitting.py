"""How a shape begins with an object that a generator has made. Fields are fitted to it, Gaussians are spread over its
surface; other shapes begin with it as with the field of a stage before, and their colours are fitted.

Letters: N points.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.geometry.triangles import scattered, signed_distance
from mpiprop.io.mesh import extract
from mpiprop.objective.scene import Scene
from mpiprop.run import transition
from mpiprop.shapes.base import Shape
from mpiprop.shapes.clouds.gaussians import Gaussians
from mpiprop.shapes.fields.base import DistanceField, Field
from mpiprop.shapes.fields.gridded import Gridded
from mpiprop.shapes.surfaces.base import Surface, TexturedSurface
from mpiprop.views.cameras import Views

POOL, BATCH, STEPS = 1 << 15, 1 << 12, 300  # points known, points looked at in a step, steps
NEAR = 0.05  # deviation of the half of the points that are close to the surface (of the radius)
CELLS = 64  # a side of the grid in which the surface is found
TABLE, NETWORK = 2e-2, 4e-3  # learning rates of encodings and of networks


def begin(scene: Scene, made: Scene, tau: int, view: Views, rng: Streams, say: Callable[[str], None]) -> None:
    """Lets the shape of `scene` begin with the object of the scene `made`.

    tau: the step at which `made` is seen
    view: one evaluation view of it
    say: prints a line on what is made
    Raises UserError where the shape cannot begin with an object, and RunError for an empty one.
    """
    check(scene.shape, made.shape)
    if not isinstance(scene.shape, (Gridded, Gaussians)):
        transition.begin(scene, made, tau, view, say)
    if not isinstance(scene.shape, TexturedSurface):
        mesh = extract(made, CELLS, say=lambda line: None)
        vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces).long()
        take = _scatter if isinstance(scene.shape, Gaussians) else _fit
        take(scene, made, vertices, faces, rng)


def check(shape: Shape, made: Shape) -> None:
    """Raises UserError where a shape cannot begin with an object that a generator has made."""
    if not isinstance(made, Field) or isinstance(shape, Field) and not isinstance(shape, Gridded):
        raise UserError(f"a {type(shape).__name__} cannot begin with what a generator makes; a HashGrid, an SDF, a DMTet, a "
                        "TexturedMesh and Gaussians can")
    if not isinstance(shape, (Gridded, Gaussians)):
        shape.check_start(made)


def _scatter(scene: Scene, made: Scene, vertices: Tensor, faces: Tensor, rng: Streams) -> None:
    """Spreads the Gaussians evenly over a surface."""
    points = scattered(vertices, faces, len(scene.shape.position), rng)
    scene.shape.take(points, made.albedo(points.to(made.device)))


def _fit(scene: Scene, made: Scene, vertices: Tensor, faces: Tensor, rng: Streams) -> None:
    """Least squares of the colours close to a surface; of a field also of the distance to it, or else of log(1 + density)."""
    shape, radius = scene.shape, scene.shape.radius
    named = [*shape.named_parameters()]
    tables = [parameter for name, parameter in named if name.startswith("encoding.")]
    networks = [parameter for name, parameter in named if "network." in name]
    if not networks:
        return  # a surface without colours
    near = scattered(vertices, faces, POOL // 2, rng) + NEAR * radius * normal(rng("near"), POOL // 2, 3)
    far = uniform(rng("far"), POOL // 2, 3, lo=-radius, hi=radius)
    x = torch.cat([near, far]).clamp(-radius, radius).to(scene.device)
    inside = x.clamp(-made.shape.radius, made.shape.radius)
    with torch.no_grad():
        if isinstance(shape, Surface):
            target, values = torch.zeros(POOL), lambda some: torch.zeros(len(some))
        elif isinstance(shape, DistanceField):
            target, values = signed_distance(vertices, faces, x.cpu()).to(x), shape.distance
        else:
            target = (made.shape.density(inside) * (inside == x).all(1)).log1p()

            def values(some: Tensor) -> Tensor:
                return shape.density(some).log1p()
        colours = made.albedo(inside[:POOL // 2])
    optimiser = torch.optim.Adam([{"params": tables, "lr": TABLE}, {"params": networks}], lr=NETWORK, eps=1e-15)
    for step in range(STEPS):
        for group, rate in zip(optimiser.param_groups, (TABLE, NETWORK)):
            group["lr"] = rate * (1 - step / STEPS)
        some = torch.randint(POOL, (BATCH,), generator=rng(f"batch{step}"))
        close = torch.randint(POOL // 2, (BATCH // 2,), generator=rng(f"close{step}"))
        optimiser.zero_grad()
        with torch.enable_grad():
            albedo = scene.material.albedo(shape.features(x[close]))
            (mse_loss(values(x[some]), target[some]) + mse_loss(albedo, colours[close])).backward()
        optimiser.step()
    optimiser.zero_grad()
    if isinstance(shape, Gridded):
        shape.renew(rng)
