"""Meshes as files that other programs read: GLB (Khronos glTF 2.0, sections 3, 4), OBJ and PLY; writes are atomic.

Letters: V vertices, F faces, S x S texels. glTF and OBJ are y-up with the front on +z; the world (z up, front +x) is
turned for them. PLY keeps the world frame.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from torch import Tensor

from mpiprop.core.errors import RunError, UserError
from mpiprop.io.mesh import Mesh
from mpiprop.shapes.clouds import ply as gaussians

Y_UP = [1, 2, 0]  # (x, y, z) of the world -> (y, z, x): a cyclic permutation, so a rotation
VERTICES, INDICES = 34962, 34963  # buffer targets of glTF
SAMPLER = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}  # trilinear, clamped to the edge


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, moved there when all went well.

    Raises RunError when the disk is full and UserError where the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"{path}: not written, the disk is full; make room and run `mpiprop export` again") from None
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def made(folder: Path) -> None:
    """Makes a folder and those above it, where they are missing. Raises UserError where it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None


def sweep(folder: Path) -> None:
    """Removes unfinished files of killed processes from `folder`."""
    for temporary in folder.rglob(".*.part*"):
        temporary.unlink(missing_ok=True)


def write(mesh: Mesh, path: str | Path) -> None:
    """Writes `mesh` in the format that the path's suffix names; a textured OBJ has a .mtl and a .png beside it.

    Raises UserError for another suffix.
    """
    path = Path(path)
    writers: dict[str, Callable[[Mesh], bytes]] = {".glb": glb, ".obj": partial(obj, name=path.stem), ".ply": ply}
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise UserError(f"{path}: a mesh is written as {', '.join(writers)}, not {suffix or 'without a suffix'}")
    contents = {path: writers[suffix](mesh)}
    if suffix == ".obj" and mesh.texture:
        contents |= {path.with_suffix(".mtl"): mtl(path.stem), path.with_suffix(".png"): _png(mesh.texture.albedo)}
    for target, content in reversed(contents.items()):
        with atomic(target) as temporary:
            temporary.write_bytes(content)


def write_cloud(rows: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes the raw numbers of a cloud of Gaussians as PLY."""
    with atomic(path) as temporary:
        gaussians.write(rows, temporary)


def glb(mesh: Mesh) -> bytes:
    """A binary glTF of one mesh with a texture or vertex colours, rough and not metallic.

    COLOR_0 is linear light, the texture sRGB, as glTF demands.
    """
    from PIL import Image
    from trimesh import Trimesh
    from trimesh.exchange.gltf import export_glb
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    atlas = mesh.texture.atlas if mesh.texture else None
    source, faces = (atlas.source, atlas.faces) if atlas else (slice(None), mesh.faces)
    solid = Trimesh(mesh.vertices[source][:, Y_UP], faces, vertex_normals=mesh.normals[source][:, Y_UP], process=False)
    material = PBRMaterial(metallicFactor=0.0, roughnessFactor=1.0)
    if mesh.texture and atlas:
        material.baseColorTexture = Image.fromarray(_bytes(mesh.texture.albedo))
    elif mesh.colours is not None:  # trimesh's vertex colours have 8 bits: too few for linear light in the dark
        solid.vertex_attributes["COLOR_0"] = linear(mesh.colours).astype(np.float32)
    solid.visual = TextureVisuals(atlas and atlas.uv * [1, -1] + [0, 1], material)  # v runs upwards in trimesh
    return export_glb(solid, include_normals=True, tree_postprocessor=_complete)


def _complete(tree: dict[str, Any]) -> None:
    """Adds to trimesh's glTF document what it leaves out: the name of the colours, the targets of buffers, the sampler."""
    (primitive,) = tree["meshes"][0]["primitives"]
    attributes = primitive["attributes"]
    if "_COLOR_0" in attributes:
        attributes["COLOR_0"] = attributes.pop("_COLOR_0")
    targets = dict.fromkeys(attributes.values(), VERTICES) | {primitive["indices"]: INDICES}
    for accessor, target in targets.items():
        tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = target
    if "textures" in tree:
        tree["samplers"] = [SAMPLER]
        for texture in tree["textures"]:
            texture["sampler"] = 0


def obj(mesh: Mesh, name: str = "mesh") -> bytes:
    """A Wavefront file with the material of `mtl(name)`, or sRGB vertex colours after the positions, as Blender reads them.

    Written here since trimesh opens the surface along the seams of the texture and rounds vertex colours to 8 bits.
    """
    vertices, texture = mesh.vertices[:, Y_UP], mesh.texture
    if mesh.colours is not None and not texture:
        vertices = np.concatenate([vertices, mesh.colours], 1)
    lines = ["# mpiprop: y up, front +z", *([f"mtllib {name}.mtl", "usemtl surface"] if texture else [])]
    lines += [f"v {' '.join(f'{value:.9g}' for value in row)}" for row in vertices.tolist()]
    lines += [f"vn {x:.6g} {y:.6g} {z:.6g}" for x, y, z in mesh.normals[:, Y_UP].tolist()]
    corners = (mesh.faces + 1).tolist()
    if texture:  # v runs upwards here
        lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in texture.atlas.uv.tolist()]
        lines += [f"f {a}/{i}/{a} {b}/{j}/{b} {c}/{k}/{c}"
                  for (a, b, c), (i, j, k) in zip(corners, (texture.atlas.faces + 1).tolist())]
    else:
        lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in corners]
    return "\n".join([*lines, ""]).encode()


def mtl(name: str) -> bytes:
    """The material "surface" of a Wavefront file: NAME.png as its colour, without highlights (rough, not metallic)."""
    return f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nPr 1\nPm 0\nillum 1\nmap_Kd {name}.png\n".encode()


def ply(mesh: Mesh) -> bytes:
    """A binary Stanford file with normals and 8-bit sRGB vertex colours, in the world frame (z up, front +x)."""
    from trimesh import Trimesh
    from trimesh.exchange.ply import export_ply

    colours = None if mesh.colours is None else _bytes(mesh.colours)
    solid = Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, vertex_colors=colours, process=False)
    return export_ply(solid, vertex_normal=True)


def _bytes(values: ndarray) -> ndarray:
    return np.round(values * 255).astype(np.uint8)


def _png(picture: ndarray) -> bytes:
    """The file of a picture [S, S, 3] in [0, 1]."""
    from PIL import Image

    content = BytesIO()
    Image.fromarray(_bytes(picture)).save(content, "PNG")
    return content.getvalue()


def linear(srgb: ndarray) -> ndarray:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
