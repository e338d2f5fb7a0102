"""Clouds of 3D Gaussians (Kerbl et al. 2023; DreamGaussian, section 3.1).

Letters: N Gaussians, K spherical harmonics. Each trained tensor has a row per Gaussian and is a learning-rate group.
"""

from collections.abc import Callable
from math import log

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError, positive
from mpiprop.core.streams import Streams, uniform
from mpiprop.geometry.harmonics import C0
from mpiprop.shapes.base import Shape
from mpiprop.shapes.clouds import ply, splat_density
from mpiprop.shapes.clouds.base import Cloud, Splats
from mpiprop.shapes.clouds.densify import Densify, Rules

CLOSE = 1e-7  # square of the least distance that counts as one between neighbours
OPAQUE = 0.9  # opacity of Gaussians that are placed on a surface
ROWS = ("position", "f_dc", "f_rest", "scale", "rotation", "opacity")


class Gaussians(Cloud):
    """A cloud of Gaussians whose number changes while it trains.

    radius: half side of the box that holds the object (world units); Gaussians outside are removed where others are
    number: initial number of Gaussians, where they are not read from a file
    ball: radius of the ball that they fill initially (world units)
    points: a PLY file to begin with: Gaussians, or points with or without colours
    degree: of the spherical harmonics that make the colour depend on the direction, 0 to 3
    opacity: of each Gaussian at first
    densify_every: steps between changes of the number of Gaussians; 0: it stays
    densify_from: first step after which they may change
    densify_until: last step after which they may change
    densify_gradient: threshold on the mean screen-space gradient (NDC) above which a Gaussian is cloned or split: the mean over
        all views that saw it since the last change, of the loss of each view alone
    densify_size: split those of a larger standard deviation than this, clone the others (world units)
    densify_most: largest number of Gaussians; where it is reached, those of the largest gradients are cloned or split
    prune_opacity: remove those of a lower opacity, where Gaussians change; 0: none
    prune_size: remove those of a larger standard deviation (world units); 0: none
    reset_every: steps between resets of all opacities to `reset_opacity` at most; 0: never
    reset_opacity: opacity after a reset
    cross: whether windows may reach across steps after which the Gaussians change; false: they end there
    """

    def __init__(self, rng: Streams, *, radius: float = 1.0, number: int = 5000, ball: float = 0.5,
                 points: str | None = None, degree: int = 0, opacity: float = 0.1,
                 densify_every: int = 50, densify_from: int = 0, densify_until: int = 3000, densify_gradient: float = 0.01,
                 densify_size: float = 0.04, densify_most: int = 1_000_000, prune_opacity: float = 0.01,
                 prune_size: float = 0.4, reset_every: int = 700, reset_opacity: float = 0.01, cross: bool = True) -> None:
        super().__init__()
        positive(radius=radius)
        good = {"number": number > 0, "degree": 0 <= degree <= 3, "opacity": 0 < opacity < 1, "densify_size": densify_size > 0,
                "reset_opacity": 0 < reset_opacity < 1, "densify_every": densify_every >= 0, "reset_every": reset_every >= 0}
        if bad := [name for name, fine in good.items() if not fine]:
            raise UserError(f"{bad[0]}: out of range (number, densify_size above 0; degree 0 to 3; opacities between 0 and "
                            "1; densify_every, reset_every at least 0)")
        self.radius = radius
        self.rules = Rules(densify_every, densify_from, densify_until, densify_gradient, densify_size, densify_most,
                           radius, prune_opacity, prune_size, reset_every, reset_opacity, cross)
        self.most_points = densify_most if densify_every else 0
        begun = read(points, degree, opacity) if points else start(rng, number, ball, degree, opacity)
        for name in ROWS:
            setattr(self, name, nn.Parameter(begun[name]))

    def splats(self) -> Splats:
        return Splats(self.position, self.scale.exp(), normalize(self.rotation, dim=-1), self.opacity[:, 0].sigmoid(),
                      torch.cat([self.f_dc, self.f_rest], 1))

    def solid(self, x: Float[Tensor, "Q 3"]) -> Float[Tensor, " Q"]:
        """Returns the density at points, without a unit: 1 and more in the middle of an opaque Gaussian."""
        return splat_density.density(self.splats(), x)

    def colours(self, x: Float[Tensor, "Q 3"]) -> Float[Tensor, "Q 3"]:
        return splat_density.colour(self.splats(), x)

    def rows(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ROWS}

    def structure(self, streams: Callable[[int], Streams]) -> Densify:
        return Densify(self.rules, streams)

    def ends(self, T: int) -> list[int]:
        return self.rules.ends(T)

    def check_start(self, previous: Shape) -> None:
        """Raises UserError for anything but another cloud of the same degree, of however many Gaussians."""
        if not isinstance(previous, Gaussians) or previous.f_rest.shape[1] != self.f_rest.shape[1]:
            raise UserError(f"Gaussians of this degree cannot begin with a {type(previous).__name__}; with Gaussians of the "
                            "same degree they can")

    @torch.no_grad()
    def take(self, points: Tensor, colours: Tensor) -> None:
        """Becomes as many round, opaque Gaussians at points [N, 3] of colours [N, 3] in [0, 1]."""
        degree = round((self.f_rest.shape[1] + 1) ** 0.5) - 1
        rows = _round(points.cpu(), ((colours.cpu() - 0.5) / C0)[:, None], degree, OPAQUE)
        for name in ROWS:
            getattr(self, name).data = rows[name].to(self.position.device)

    @torch.no_grad()
    def begin_with(self, previous: Shape) -> None:
        """Takes over the Gaussians of another such cloud."""
        self.check_start(previous)
        for name in ROWS:
            getattr(self, name).data = getattr(previous, name).detach().clone()


def start(rng: Streams, N: int, radius: float, degree: int, opacity: float) -> dict[str, Tensor]:
    """Round grey Gaussians all over a ball, as wide as their neighbours are far."""
    return _round(ball(rng("position"), N, radius), uniform(rng("colour"), N, 1, 3) / 255, degree, opacity)


def read(path: str, degree: int, opacity: float) -> dict[str, Tensor]:
    """The Gaussians of a PLY file, or round ones at its points. Raises UserError where there are none, or of another
    degree."""
    rows = ply.read(path)
    if "scale" not in rows:
        rgb = rows.get("rgb", torch.full_like(rows["position"], 0.5))
        return _round(rows["position"], ((rgb - 0.5) / C0)[:, None], degree, opacity)
    if rows["f_rest"].shape[1] != (degree + 1) ** 2 - 1:
        held = round((rows["f_rest"].shape[1] + 1) ** 0.5) - 1
        raise UserError(f"degree: {path} holds harmonics of degree {held}; set degree={held}")
    return rows


def ball(rng: Generator, N: int, radius: float) -> Float[Tensor, "{N} 3"]:
    """Points uniform in a ball about the origin."""
    u, phi, r = uniform(rng, 3, N)
    z, phi = 2 * u - 1, 2 * torch.pi * phi
    flat = (1 - z * z).sqrt()
    return torch.stack([flat * phi.cos(), flat * phi.sin(), z], -1) * (radius * r ** (1 / 3))[:, None]


def spacing(points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
    """Root of the mean square distance of each point to its three nearest neighbours."""
    from scipy.spatial import cKDTree

    if len(points) == 1:
        return torch.ones(1)
    places = points.double().numpy()
    distances, _ = cKDTree(places).query(places, k=range(2, min(4, len(places)) + 1))
    return torch.from_numpy(distances).square().mean(-1).clamp(min=CLOSE).sqrt().float()


def _round(position: Tensor, f_dc: Tensor, degree: int, opacity: float) -> dict[str, Tensor]:
    N = len(position)
    return {"position": position, "f_dc": f_dc, "f_rest": torch.zeros(N, (degree + 1) ** 2 - 1, 3),
            "scale": spacing(position).log()[:, None].repeat(1, 3), "rotation": torch.tensor([[1.0, 0, 0, 0]]).repeat(N, 1),
            "opacity": torch.full((N, 1), log(opacity / (1 - opacity)))}
