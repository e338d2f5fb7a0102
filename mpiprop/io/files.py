"""Meshes as files that other programs read: GLB (Khronos glTF 2.0, sections 3, 4), OBJ and PLY; writes are atomic.

Letters: V vertices, F faces, S x S texels. glTF and OBJ are y-up with the front on +z; the world (z up, front +x) is
turned for them. PLY keeps the world frame.
"""

import errno
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy import ndarray
from torch import Tensor

from mpiprop.core.errors import RunError, UserError
from mpiprop.io.mesh import Mesh
from mpiprop.shapes.clouds import ply as gaussians

Y_UP = [1, 2, 0]  # (x, y, z) of the world -> (y, z, x): a cyclic permutation, so a rotation
COMPONENTS = {"<f4": 5126, "<u2": 5123, "<u4": 5125}  # component types of glTF
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


def sweep(folder: Path) -> None:
    """Removes what processes that were killed have left of files in `folder`."""
    for temporary in folder.rglob(".*.part*"):
        temporary.unlink(missing_ok=True)


def write(mesh: Mesh, path: str | Path) -> None:
    """Writes `mesh` in the format that the path's suffix names; a textured OBJ has a .mtl and a .png beside it.

    Raises UserError for another suffix.
    """
    path = Path(path)
    writers = {".glb": glb, ".obj": partial(obj, name=path.stem), ".ply": ply}
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
    """A binary glTF of one mesh with a texture or vertex colours, rough and not metallic where the texture says nothing.

    COLOR_0 is linear light, the texture sRGB, as glTF demands.
    """
    texture = mesh.texture
    source, faces = (texture.atlas.source, texture.atlas.faces) if texture else (slice(None), mesh.faces)
    arrays = {"POSITION": mesh.vertices[source][:, Y_UP].astype("<f4"),
              "NORMAL": mesh.normals[source][:, Y_UP].astype("<f4")}
    surface, pictures = {"metallicFactor": 0, "roughnessFactor": 1}, []
    if texture:
        arrays["TEXCOORD_0"] = texture.atlas.uv.astype("<f4")
        surface["baseColorTexture"], pictures = {"index": 0}, [texture.albedo]
        if texture.pbr is not None:  # green and blue are roughness and metallic
            surface |= {"metallicRoughnessTexture": {"index": 1}, "metallicFactor": 1}
            pictures.append(np.pad(texture.pbr, ((0, 0), (0, 0), (1, 0)), constant_values=1))
    elif mesh.colours is not None:  # sixteen bits: eight of linear light are too few in the dark
        rgba = np.pad(linear(mesh.colours), ((0, 0), (0, 1)), constant_values=1)
        arrays["COLOR_0"] = np.round(rgba * 65535).astype("<u2")

    accessors = [{"bufferView": i, "componentType": COMPONENTS[array.dtype.str], "type": f"VEC{array.shape[1]}",
                  "count": len(array), **({"normalized": True} if name == "COLOR_0" else {})}
                 for i, (name, array) in enumerate(arrays.items())]
    accessors[0] |= {"min": arrays["POSITION"].min(0).tolist(), "max": arrays["POSITION"].max(0).tolist()}
    indices = len(accessors)
    accessors.append({"bufferView": indices, "componentType": COMPONENTS["<u4"], "type": "SCALAR", "count": faces.size})
    blobs = [*(array.tobytes() for array in arrays.values()), faces.astype("<u4").tobytes(), *map(_png, pictures)]
    blobs = [blob + bytes(-len(blob) % 4) for blob in blobs]
    starts = np.cumsum([0, *map(len, blobs)]).tolist()
    views = [{"buffer": 0, "byteOffset": start, "byteLength": len(blob)} for start, blob in zip(starts, blobs)]
    for view in views[:indices]:
        view["target"] = VERTICES
    views[indices]["target"] = INDICES
    document = {
        "asset": {"version": "2.0", "generator": "mpiprop"},
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {name: i for i, name in enumerate(arrays)}, "indices": indices,
                                    "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": surface}],
        "buffers": [{"byteLength": starts[-1]}], "bufferViews": views, "accessors": accessors,
    }
    if texture:
        document |= {"images": [{"bufferView": indices + 1 + i, "mimeType": "image/png"} for i in range(len(pictures))],
                     "textures": [{"source": i, "sampler": 0} for i in range(len(pictures))], "samplers": [SAMPLER]}
    return _container(document, blobs)


def _container(document: dict, blobs: list[bytes]) -> bytes:
    """The binary file of a glTF document and the buffer that the blobs make, all of them multiples of four bytes."""
    text, size = json.dumps(document, separators=(",", ":")).encode(), sum(map(len, blobs))
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + size)
    return b"".join([header, struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", size, b"BIN\0"), *blobs])


def obj(mesh: Mesh, name: str = "mesh") -> bytes:
    """A Wavefront file with the material of `mtl(name)`, or sRGB vertex colours after the positions, as Blender reads them."""
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
    """A binary Stanford file with normals and eight-bit sRGB vertex colours, in the world frame (z up, front +x)."""
    columns = [*((name, "<f4", "float") for name in ("x", "y", "z", "nx", "ny", "nz"))]
    values = [*mesh.vertices.T, *mesh.normals.T]
    if mesh.colours is not None:
        columns += [(name, "u1", "uchar") for name in ("red", "green", "blue")]
        values += [*np.round(mesh.colours * 255).astype("u1").T]
    vertices = np.empty(len(mesh.vertices), [(name, kind) for name, kind, _ in columns])
    for (name, _, _), value in zip(columns, values):
        vertices[name] = value
    faces = np.empty(len(mesh.faces), [("n", "u1"), ("corners", "<i4", 3)])
    faces["n"], faces["corners"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", "comment mpiprop: z up, front +x",
              f"element vertex {len(vertices)}", *(f"property {word} {name}" for name, _, word in columns),
              f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + vertices.tobytes() + faces.tobytes()


def _png(picture: ndarray) -> bytes:
    """The file of a picture [S, S, 3] in [0, 1]."""
    from PIL import Image

    content = BytesIO()
    Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def linear(srgb: ndarray) -> ndarray:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
