"""Meshes as files that other programs read: GLB (Khronos glTF 2.0, sections 3, 4), OBJ and PLY; writes are atomic.

Letters: V vertices, F faces. glTF and OBJ are y-up with the front on +z; the world (z up, front +x) is turned for them.
PLY keeps the world frame.
"""

import errno
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy import ndarray

from mpiprop.core.errors import RunError, UserError
from mpiprop.export.mesh import Mesh

Y_UP = [1, 2, 0]  # (x, y, z) of the world -> (y, z, x): a cyclic permutation, so a rotation
FLOAT, UINT16, UINT32 = 5126, 5123, 5125  # component types of glTF
VERTICES, INDICES = 34962, 34963  # buffer targets of glTF


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, moved there when all went well.

    Raises RunError when the disk is full and UserError where the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"{path}: not written, the disk is full; make room and run `mpiprop export` again") from None
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write(mesh: Mesh, path: str | Path) -> None:
    """Writes `mesh` in the format that the path's suffix names. Raises UserError for another one."""
    writers = {".glb": glb, ".obj": obj, ".ply": ply}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise UserError(f"{path}: a mesh is written as {', '.join(writers)}, not {suffix or 'without a suffix'}")
    content = writers[suffix](mesh)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def glb(mesh: Mesh) -> bytes:
    """A binary glTF of one rough, non-metallic, vertex-coloured mesh; COLOR_0 is linear light, as glTF demands."""
    vertices = mesh.vertices[:, Y_UP].astype("<f4")
    arrays = [("POSITION", vertices, FLOAT, "VEC3"), ("NORMAL", mesh.normals[:, Y_UP].astype("<f4"), FLOAT, "VEC3")]
    if mesh.colours is not None:  # sixteen bits: eight of linear light are too few in the dark
        rgba = np.pad(linear(mesh.colours), ((0, 0), (0, 1)), constant_values=1)
        arrays.append(("COLOR_0", np.round(rgba * 65535).astype("<u2"), UINT16, "VEC4"))
    arrays.append(("indices", mesh.faces.reshape(-1).astype("<u4"), UINT32, "SCALAR"))

    views, accessors, offset = [], [], 0
    for i, (name, array, component, kind) in enumerate(arrays):
        target = INDICES if name == "indices" else VERTICES
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": target})
        accessors.append({"bufferView": i, "componentType": component, "type": kind, "count": len(array)})
        offset += array.nbytes  # a multiple of four for all of them
    accessors[0] |= {"min": vertices.min(0).tolist(), "max": vertices.max(0).tolist()}
    accessors[2] |= {"normalized": True} if mesh.colours is not None else {}
    *attributes, indices = range(len(arrays))
    document = {
        "asset": {"version": "2.0", "generator": "mpiprop"},
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {arrays[i][0]: i for i in attributes}, "indices": indices,
                                    "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}],
        "buffers": [{"byteLength": offset}], "bufferViews": views, "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + offset)
    return b"".join([header, struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", offset, b"BIN\0"),
                     *(array.tobytes() for _, array, _, _ in arrays)])


def obj(mesh: Mesh) -> bytes:
    """A Wavefront file with sRGB vertex colours after the positions, as MeshLab and Blender read them."""
    vertices = mesh.vertices[:, Y_UP]
    if mesh.colours is not None:
        vertices = np.concatenate([vertices, mesh.colours], 1)
    lines = [f"v {' '.join(f'{value:.9g}' for value in row)}" for row in vertices.tolist()]
    lines += [f"vn {x:.6g} {y:.6g} {z:.6g}" for x, y, z in mesh.normals[:, Y_UP].tolist()]
    lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in (mesh.faces + 1).tolist()]
    return "\n".join(["# mpiprop: y up, front +z", *lines, ""]).encode()


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


def linear(srgb: ndarray) -> ndarray:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
