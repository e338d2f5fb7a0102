"""Gaussians as the page's viewer reads them: three texels of four 32-bit words each.

x, y, z, and colour and opacity as bytes | covariance xx, xy, xz, yy | yz, zz, and two words that are not used. The frame is
glTF's (y up, front +z), as that of the mesh on the page. Colours are what does not depend on the direction.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray
from torch.nn.functional import normalize

from mpiprop.io.files import Y_UP
from mpiprop.geometry.harmonics import C0
from mpiprop.geometry.quaternions import matrices
from mpiprop.shapes.clouds import ply

MOST = 200_000  # Gaussians on a page, which has 64 bytes for each


@dataclass(frozen=True)
class Packed:
    """Gaussians for the page."""

    words: ndarray  # [N, 12] uint32
    box: list[list[float]]  # its lowest and highest corner: nearly all centres are in it
    number: int  # Gaussians in the file


def packed(path: Path) -> Packed | None:
    """The Gaussians in a PLY file, the MOST with the largest opacity times area if they are more; None of mere points."""
    rows = ply.read(str(path))
    if "scale" not in rows:
        return None
    number = len(rows["position"])
    if number > MOST:
        area = rows["scale"].sort(-1).values[:, 1:].sum(-1).exp()  # of the two longer axes
        kept = (rows["opacity"][:, 0].sigmoid() * area).topk(MOST).indices.sort().values
        rows = {name: values[kept] for name, values in rows.items()}
    axes = matrices(normalize(rows["rotation"], dim=-1)) * rows["scale"].exp().T
    spread = axes.permute(2, 0, 1)[:, Y_UP]  # [N, 3 (axes of the frame), 3 (of the Gaussian)]
    covariance = (spread @ spread.mT).numpy()
    centre = rows["position"][:, Y_UP].numpy()
    colour = (0.5 + C0 * rows["f_dc"][:, 0]).clamp(0, 1).numpy()
    rgba = np.concatenate([colour, rows["opacity"].sigmoid().numpy()], 1)
    words = np.zeros((len(centre), 12), "<u4")
    words[:, :3] = centre.astype("<f4").view("<u4")
    words[:, 3] = np.round(rgba * 255).astype("u1").view("<u4")[:, 0]
    words[:, 4:10] = covariance[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]].astype("<f4").view("<u4")
    return Packed(words, np.quantile(centre, [0.02, 0.98], axis=0).tolist(), number)
