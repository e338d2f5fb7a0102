"""Clouds of Gaussians as PLY files in the layout of 3D Gaussian splatting, which common viewers read.

Numbers are those that train: logarithms of scales, logits of opacities, quaternions w x y z of any length. The frame is the
world's (z up, front +x). Letters: N Gaussians, K spherical harmonics.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpiprop.core.errors import UserError


def write(rows: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes position [N, 3], f_dc [N, 1, 3], f_rest [N, K - 1, 3], opacity [N, 1], scale [N, 3] and rotation [N, 4]."""
    from plyfile import PlyData, PlyElement

    N = len(rows["position"])
    columns = {"": rows["position"], "n": torch.zeros(N, 3), "f_dc_": rows["f_dc"].mT.flatten(1),
               "f_rest_": rows["f_rest"].mT.flatten(1), "opacity": rows["opacity"], "scale_": rows["scale"],
               "rot_": rows["rotation"]}
    names = [f"{prefix}{'xyz'[i]}" if prefix in ("", "n") else prefix + (str(i) if prefix[-1] == "_" else "")
             for prefix, values in columns.items() for i in range(values.shape[1])]
    table = torch.cat([values.detach().cpu().float() for values in columns.values()], 1).numpy()
    vertices = np.empty(N, [(name, "<f4") for name in names])
    for i, name in enumerate(names):
        vertices[name] = table[:, i]
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(path))


def number(path: str | Path) -> int:
    """How many points a PLY file has."""
    from plyfile import PlyData

    return len(PlyData.read(str(path))["vertex"].data)


def read(path: str) -> dict[str, Tensor]:
    """What `write` wrote, or of any other PLY file its points: position, and rgb [N, 3] in [0, 1] where they have colours.

    Raises UserError where the file cannot be read or has no points.
    """
    from plyfile import PlyData, PlyParseError

    try:
        vertices = PlyData.read(path)["vertex"]
    except (OSError, PlyParseError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a PLY file with points: {error}") from None
    present = set(vertices.data.dtype.names)
    if not {"x", "y", "z"} <= present or not len(vertices.data):
        raise UserError(f"{path}: has no points (x, y, z)")

    def columns(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(vertices[name], np.float32) for name in names], 1))
    rows = {"position": columns("x", "y", "z")}
    if {"scale_0", "rot_0", "opacity", "f_dc_0"} <= present:
        rest = [f"f_rest_{i}" for i in range(sum(name.startswith("f_rest_") for name in present))]
        N, C = len(vertices.data), len(rest) // 3
        rows |= {"f_dc": columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None], "opacity": columns("opacity"),
                 "f_rest": columns(*rest).view(N, 3, C).mT.contiguous() if rest else torch.zeros(N, 0, 3),
                 "scale": columns("scale_0", "scale_1", "scale_2"), "rotation": columns("rot_0", "rot_1", "rot_2", "rot_3")}
    elif {"red", "green", "blue"} <= present:
        whole = np.issubdtype(vertices.data.dtype["red"], np.integer)
        rows["rgb"] = columns("red", "green", "blue") / (255 if whole else 1)
    return rows
