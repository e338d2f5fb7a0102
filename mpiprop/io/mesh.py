"""The surface of a density field as a triangle mesh with colours or a texture, fit for other programs.

Fewer faces by quadric errors: Garland and Heckbert 1997, section 4.
Letters: N points, V vertices, F faces. World: right-handed, z up, azimuth 0 on +x ("front").
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy import ndarray

from mpiprop.core.errors import RunError
from mpiprop.io.atlas import Atlas, Texture, paint, unwrap
from mpiprop.geometry.isosurface import MARGIN, Function, Grid, evaluated
from mpiprop.geometry.triangles import vertex_normals
from mpiprop.shapes.clouds.base import Cloud
from mpiprop.shapes.fields.base import DistanceField, Field
from mpiprop.shapes.surfaces.base import Surface, TexturedSurface

if TYPE_CHECKING:
    from mpiprop.objective.scene import Scene

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mesh:
    """Triangles in the world frame, counterclockwise seen from outside."""

    vertices: ndarray  # [V, 3] float32, world units
    faces: ndarray  # [F, 3] int32
    colours: ndarray | None = None  # [V, 3] float32 sRGB in [0, 1]
    texture: Texture | None = None

    @property
    def normals(self) -> ndarray:
        """Outward unit normals [V, 3]: the mean of the faces around a vertex, by area; +z where they cancel."""
        return vertex_normals(torch.from_numpy(self.vertices).double(), torch.from_numpy(self.faces).long()).float().numpy()

    @property
    def open_edges(self) -> int:
        """How many edges are not shared by exactly two faces: none on a watertight mesh."""
        edges = np.sort(np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]]), 1)
        return int((np.unique(edges, axis=0, return_counts=True)[1] != 2).sum())


def extract(scene: "Scene", resolution: int = 128, threshold: float | Literal["auto"] = "auto", say: Say = print, *,
            parts: float = 0.01, faces: int = 0, texture: int = 0, height_m: float = 0.0) -> Mesh:
    """The surface of a scene, found by `iso_surface` where it is a field, made ready for other programs by `finish`; the
    keys of `mesh`. A mesh that has a texture of its own keeps it, and all of its faces."""
    scene = scene.object()
    shape = scene.shape
    if isinstance(shape, TexturedSurface):
        return real_size(_with_own_texture(scene, shape, say), height_m)
    if isinstance(shape, Surface):
        vertices, corners = (tensor.detach().cpu().numpy() for tensor in shape.surface())
        mesh = without_crumbs(Mesh(vertices, corners.astype(np.int32)), parts)
    else:
        assert isinstance(shape, (Field, Cloud))
        level = shape.level if isinstance(shape, Field) and shape.level is not None else threshold
        mesh = iso_surface(lambda x: shape.solid(x.to(scene.device)), shape.radius, resolution, level, say, parts,
                           isinstance(shape, DistanceField))
    return finish(mesh, lambda x: scene.albedo(x.to(scene.device)), faces, texture, height_m, say)


def finish(mesh: Mesh, albedo: Function, faces: int = 0, texture: int = 0, height_m: float = 0.0,
           say: Say = print) -> Mesh:
    """The mesh brought down to `faces` faces, with colours, a texture of `texture` texels a side, `height_m` metres tall.

    Zero leaves a step out. albedo: points [N, 3] -> sRGB [N, 3] in [0, 1]. What was made is said through `say`. Raises
    RunError where the packages for it are missing.
    """
    mesh = coloured(decimated(mesh, faces), albedo)
    mesh = textured(mesh, albedo, texture) if texture else mesh
    count = mesh.open_edges
    closed = f"{count:,} open edge{'s' * (count != 1)}" if count else "watertight"
    say(f"mesh: {len(mesh.faces):,} faces, {closed}"
        + (f", texture {texture} x {texture}" if texture else "") + (f", {height_m:g} m tall" if height_m else ""))
    return real_size(mesh, height_m)


def iso_surface(density: Function, bound: float, resolution: int = 128, threshold: float | Literal["auto"] = "auto",
                say: Say = print, parts: float = 0.01, distance: bool = False) -> Mesh:
    """The closed surface where `density` (points [N, 3] -> [N]) falls through `threshold` inside [-bound, bound]^3.

    A first, coarser pass finds the box that holds the surface; the second spends `resolution` cells on its longest
    side. "auto" is, in each pass, the mean of the densities that are not empty; the last is said through `say`.
    `parts`: see `without_crumbs`. distance: whether `density` is like a signed distance, nowhere steeper than on the
    first pass's grid; the second then evaluates it near the surface alone. Raises RunError where nothing is there.
    """
    first = Grid.over(np.array([[-bound] * 3, [bound] * 3]), max(2, resolution // 2)).filled(density)
    vertices, _ = first.march(level := first.level(threshold))
    extent = np.ptp(vertices, axis=0)
    tight = np.clip([vertices.min(0) - MARGIN * extent, vertices.max(0) + MARGIN * extent], -bound, bound)
    second = Grid.over(tight, resolution)
    second = second.filled_near(density, level, first) if distance else second.filled(density)
    level = second.level(threshold)
    vertices, faces = second.march(level)
    mesh = without_crumbs(Mesh(np.clip(vertices, -bound, bound).astype(np.float32), faces), parts)
    chosen = "mean of the density where not empty" if threshold == "auto" else "as configured"
    say(f"mesh: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces at density {level:.4g} ({chosen})")
    return mesh


def without_crumbs(mesh: Mesh, parts: float = 0.01) -> Mesh:
    """The bare mesh without components of fewer faces than `parts` (0 to 1) times the largest one's, nor unused vertices."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    V, faces = len(mesh.vertices), mesh.faces
    edges = coo_array((np.ones(2 * len(faces), bool), (faces[:, [0, 0]].ravel(), faces[:, 1:].ravel())), (V, V))
    component = connected_components(edges, directed=False)[1][faces[:, 0]]
    size = np.bincount(component)
    faces = faces[size[component] >= parts * size.max()]
    used, faces = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int32))


def decimated(mesh: Mesh, faces: int) -> Mesh:
    """The bare mesh with `faces` faces; the mesh itself where it has no more, or `faces` is 0.

    Below some hundreds it stays above `faces` where the shape would be lost. Raises RunError without its package.
    """
    if not 0 < faces < len(mesh.faces):
        return mesh
    try:
        from fast_simplification import simplify
    except ImportError:
        raise RunError("mesh.faces: needs the package fast-simplification (pip install fast-simplification); "
                       "mesh.faces=0 keeps all faces") from None
    vertices, kept = simplify(mesh.vertices, mesh.faces, target_count=faces, agg=5)  # its 7 turns faces over
    return Mesh(vertices.astype(np.float32), kept.astype(np.int32))


def coloured(mesh: Mesh, albedo: Function) -> Mesh:
    """The mesh with the colours that `albedo` (points [N, 3] -> [N, 3] in [0, 1]) has at its vertices."""
    return replace(mesh, colours=_colours(albedo, mesh.vertices))


def textured(mesh: Mesh, albedo: Function, size: int) -> Mesh:
    """The mesh with the colours that `albedo` has on it, in a picture of size x size texels."""
    atlas = unwrap(mesh.vertices, mesh.faces, mesh.normals, size)
    where, x = atlas.texels(mesh.vertices, size)
    return replace(mesh, texture=Texture(atlas, paint(where, _colours(albedo, x), size)))


def real_size(mesh: Mesh, height_m: float) -> Mesh:
    """The mesh scaled to be that tall (m), standing on the ground z = 0 with the middle of its box above the origin; as it
    is if 0."""
    if not height_m:
        return mesh
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    foot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    return replace(mesh, vertices=((mesh.vertices - foot) * (height_m / (high - low)[2])).astype(np.float32))


def _with_own_texture(scene: "Scene", shape: TexturedSurface, say: Say) -> Mesh:
    """The mesh of a scene that has one with a texture, whose colours are also at its vertices."""
    skin, (vertices, faces) = shape.skin(), (tensor.detach().cpu().numpy() for tensor in shape.surface())
    uv, corners, albedo = skin.uv.cpu().numpy(), skin.corners.cpu().numpy(), scene.texture(skin).cpu().numpy()
    source = np.zeros(len(uv), np.int32)
    source[corners] = faces
    texel = (uv * len(albedo)).astype(int).clip(0, len(albedo) - 1)
    colours = np.zeros_like(vertices)
    colours[source] = albedo[texel[:, 1], texel[:, 0]]
    say(f"mesh: {len(faces):,} faces with their own texture, {len(albedo)} x {len(albedo)}")
    return Mesh(vertices, faces.astype(np.int32), colours, Texture(Atlas(source, corners.astype(np.int32), uv), albedo))


def _colours(function: Function, x: ndarray) -> ndarray:
    return evaluated(function, torch.from_numpy(x)).clip(0, 1)
