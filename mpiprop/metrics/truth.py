"""How near an object comes to the true solid: volumetric IoU, Chamfer distance, PSNR and SSIM of views all around.

The object is aligned first, by the rotation about the vertical, the scale and the shift that give the largest IoU: a prompt
leaves them open. Letters: N points, B views, H x W pixels. World: right-handed, z up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, exp, log, pi, sin
from typing import Protocol

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from mpiprop.metrics.occupancy import inside
from mpiprop.views.cameras import Views

FINE, FEW = 96, 4000  # grid points along the longest side, and how many of those inside the search looks at
TURNS, TRIED = 72, 4  # rotations that the search begins from, and how many starts it follows to the end
SAMPLES = 100_000  # points on each surface for the Chamfer distance
CORNERS = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])  # of a tetrahedron: differences give slopes
TILT = np.linalg.qr([[3.0, 1.0, 0.5], [-1.0, 2.5, 0.8], [-0.2, -0.9, 2.0]])[0]  # of grids: flat sides do not lie along them
AMBIENT = 0.425  # share of the light in the truth's pictures that is everywhere; the rest comes from the camera
STEPS, NEAR, SUPERSAMPLE = 128, 1e-3, 2  # of the sphere tracer: at most, distance that is a hit (of the radius), rays a pixel


class Truth(Protocol):
    """A solid inside a ball about the origin."""

    @property
    def radius(self) -> float:
        """Of the ball."""

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance [N] of points [N, 3], negative inside; its magnitude is at most the true one."""

    def colour(self, points: Tensor) -> Tensor:
        """sRGB [N, 3] in [0, 1] of the surface nearest to points [N, 3], without light."""


@dataclass(frozen=True)
class Sample:
    """The inside of a solid."""

    points: Tensor  # [N, 3] even over it
    volume: float


@dataclass(frozen=True)
class Alignment:
    """The map x -> scale * R x + shift from the object's frame to the truth's; R turns by `yaw` (rad) about the vertical."""

    yaw: float
    scale: float
    shift: tuple[float, float, float]

    @property
    def rotation(self) -> Tensor:
        """R [3, 3]."""
        c, s = cos(self.yaw), sin(self.yaw)
        return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    def __call__(self, x: Tensor) -> Tensor:
        """Points [..., 3] in the truth's frame."""
        return self.scale * (x @ self.rotation.mT) + torch.tensor(self.shift)


@dataclass(frozen=True)
class Likeness:
    """The measures of one object."""

    iou: float  # volume of the intersection over that of the union, in [0, 1]
    chamfer: float | None  # mean distance to the other surface, over the longest side of the truth's box; None: no surface
    alignment: Alignment
    psnr_db: float | None = None  # of views all around on white, and their SSIM
    ssim: float | None = None


def likeness(vertices: ndarray, faces: ndarray, truth: Truth) -> Likeness:
    """The object with the closed mesh `vertices` [V, 3], `faces` [F, 3] held against the truth, once it is aligned."""
    axis, x, distance = _field(truth)
    solid = Sample(x[distance < 0], int((distance < 0).sum()) * float(axis[1] - axis[0]) ** 3)
    own = _inside(vertices, faces)
    best = align(own, solid, truth)
    mine, true = (best(torch.from_numpy(vertices).float()).numpy(), faces), _surface(axis, distance)
    side = float(np.ptp(true[0], axis=0).max())
    return Likeness(iou(best, own, truth, solid.volume), chamfer(_on_surface(*mine), _on_surface(*true)) / side, best)


def align(own: Sample, solid: Sample, truth: Truth) -> Alignment:
    """The alignment with the largest IoU of the object `own` with the truth, whose inside is `solid`."""
    from scipy.optimize import minimize

    some = Sample(own.points[::max(1, len(own.points) // FEW)], own.volume)
    width = (own.volume / len(some.points)) ** (1 / 3) / 4
    scales = (solid.volume / own.volume) ** (1 / 3), _reach(solid.points) / _reach(own.points)
    centres = (own.points.mean(0), solid.points.mean(0)), (_middle(own.points), _middle(solid.points))

    def placed(yaw: float, scale: float, here: Tensor, there: Tensor) -> list[float]:
        shift = there - Alignment(yaw, scale, (0.0, 0.0, 0.0))(here)
        return [yaw, log(scale), *shift.tolist()]

    def loss(numbers: Sequence[float]) -> float:
        return -iou(_alignment(numbers), some, truth, solid.volume, width)
    starts = [placed(2 * pi * i / TURNS, scale, *pair) for i in range(TURNS) for scale, pair in zip(scales, centres)]
    step = np.diag([0.1, 0.1, *[0.1 * truth.radius] * 3])
    ends = [minimize(loss, start, method="Nelder-Mead", options={
        "initial_simplex": np.vstack([start, start + step]), "xatol": 1e-4, "fatol": 1e-6, "maxiter": 500})
        for start in sorted(starts, key=loss)[:TRIED]]
    return _alignment(min(ends, key=lambda end: end.fun).x.tolist())


def iou(alignment: Alignment, own: Sample, truth: Truth, volume: float, width: float = 0.0) -> float:
    """Intersection over union of the aligned object and the truth, which has that volume.

    width: over which the truth's surface counts in part (the object's units), so that a search sees a slope
    """
    distance = truth.distance(alignment(own.points))
    share = torch.sigmoid(-distance / (width * alignment.scale)) if width else (distance < 0).float()
    whole = own.volume * alignment.scale ** 3
    common = float(share.mean()) * whole
    return common / (whole + volume - common)


def chamfer(a: ndarray, b: ndarray) -> float:
    """Half the sum of the mean distances from each point of a [N, 3] to the nearest of b [M, 3], and the reverse."""
    from scipy.spatial import cKDTree

    return float(cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2


def pictures(truth: Truth, views: Views, alignment: Alignment) -> Tensor:
    """The truth on white [B, H, W, 3] as cameras of the object's frame see it, lit from the camera."""
    H, W = views.size
    origins, directions = views.resized((SUPERSAMPLE * H, SUPERSAMPLE * W)).rays()
    drawn = torch.stack([_traced(truth, alignment(o.flatten(0, 1)), d.flatten(0, 1) @ alignment.rotation.mT).view(d.shape)
                         for o, d in zip(origins, directions)])
    return avg_pool2d(drawn.movedim(-1, 1), SUPERSAMPLE).movedim(1, -1)


def psnr_and_ssim(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Means over the views [B, H, W, 3] in [0, 1] of PSNR (dB) and SSIM (Wang et al. 2004, its Gaussian window)."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pairs = [(x.double().numpy(), y.double().numpy()) for x, y in zip(a, b)]
    return (float(np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs])),
            float(np.mean([structural_similarity(x, y, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                                 use_sample_covariance=False) for x, y in pairs])))


def _alignment(numbers: Sequence[float]) -> Alignment:
    """That of the search's numbers: yaw, logarithm of the scale, shift."""
    yaw, log_scale, x, y, z = map(float, numbers)
    return Alignment((yaw + pi) % (2 * pi) - pi, exp(log_scale), (x, y, z))


def _axis(low: float, high: float, spacing: float) -> ndarray:
    """The middles of cells of `spacing` that cover [low, high], at least two."""
    n = max(2, int(np.ceil((high - low) / spacing)))
    return (low + high) / 2 + spacing * (np.arange(n) - (n - 1) / 2)


def _inside(vertices: ndarray, faces: ndarray) -> Sample:
    """The inside of a mesh; where it has none, its vertices with hardly any volume."""
    turned = vertices @ TILT
    low, high = turned.min(0), turned.max(0)
    spacing = float((high - low).max()) / FINE
    x, y, z = (_axis(float(a), float(b), spacing) for a, b in zip(low, high))
    i, j, k = np.nonzero(inside(turned, faces, (x, y, z)))
    points = np.stack([x[i], y[j], z[k]], 1) @ TILT.T if len(i) else vertices
    return Sample(torch.from_numpy(points).float(), max(1, len(i)) * spacing ** 3)


def _field(truth: Truth) -> tuple[ndarray, Tensor, Tensor]:
    """The axis [R] of a grid over the truth's ball, its points [R^3, 3], and the truth's distances there [R^3]."""
    axis = _axis(-1.02 * truth.radius, 1.02 * truth.radius, 2.04 * truth.radius / FINE)
    x = torch.cartesian_prod(*[torch.from_numpy(axis)] * 3).float() @ torch.from_numpy(TILT.T).float()
    return axis, x, torch.cat([truth.distance(some) for some in x.split(1 << 18)])


def _surface(axis: ndarray, distance: Tensor) -> tuple[ndarray, ndarray]:
    """Vertices and faces of the truth's surface from its distances [R^3] on the grid with that axis [R]."""
    from skimage.measure import marching_cubes

    vertices, faces, *_ = marching_cubes(distance.view(len(axis), len(axis), len(axis)).numpy(), 0.0)
    return (axis[0] + vertices * (axis[1] - axis[0])) @ TILT.T, faces


def _on_surface(vertices: ndarray, faces: ndarray) -> ndarray:
    """Points [SAMPLES, 3] even over a surface, always the same."""
    from trimesh import Trimesh

    points: ndarray = Trimesh(vertices, faces, process=False).sample(SAMPLES, seed=0)
    return points


def _traced(truth: Truth, origins: Tensor, directions: Tensor) -> Tensor:
    """Colours [N, 3] of rays on white (sphere tracing: Hart, The Visual Computer 12, 1996)."""
    middle = -(origins * directions).sum(-1)
    chord = truth.radius ** 2 - origins.square().sum(-1) + middle ** 2
    going = torch.nonzero(chord > 0)[:, 0]
    t = middle - chord.clamp(min=0).sqrt()
    far, colours = middle + chord.clamp(min=0).sqrt(), torch.ones_like(origins)
    near = NEAR * truth.radius
    for _ in range(STEPS):
        distance = truth.distance(origins[going] + t[going, None] * directions[going])
        hit = going[distance < near]
        if len(hit):
            x = origins[hit] + t[hit, None] * directions[hit]
            slope = sum((corner * truth.distance(x + near * corner)[:, None] for corner in CORNERS), torch.zeros(3))
            light = -(normalize(slope, dim=-1) * directions[hit]).sum(-1, keepdim=True).clamp(max=0)
            colours[hit] = truth.colour(x) * (AMBIENT + (1 - AMBIENT) * light)
        t[going] += distance
        going = going[(distance >= near) & (t[going] < far[going])]
    return colours


def _middle(points: Tensor) -> Tensor:
    return (points.amin(0) + points.amax(0)) / 2


def _reach(points: Tensor) -> float:
    """Distance of the farthest point from the middle of the box."""
    return float((points - _middle(points)).norm(dim=-1).max())
