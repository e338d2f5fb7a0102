"""A signed distance on a hash grid, rendered as a density: TextMesh's shape (Tsalicoglou et al. 2023, section 3.1).

Both densities are s times a distribution function of -s f: matter of density s inside, that thins out over about 1 / s
around the surface f = 0. NeuS (Wang et al. 2021, eq. 10) has the logistic one: a short step dt has the opacity
(Phi(s f) - Phi(s (f - dt))) / Phi(s f) of a section that meets the surface head-on, Phi the sigmoid. A ray that meets it at
an angle sees the distance change more slowly, and with it less matter: `approach` and `grazing`. VolSDF (Yariv et al. 2021,
eq. 2) has Laplace's, whatever the direction. Letters: N points.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss, relu

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal as normal_draws, uniform
from mpiprop.geometry import triangles
from mpiprop.shapes.fields.base import DistanceField, RaySteps, Values
from mpiprop.shapes.fields.gridded import Gridded
from mpiprop.shapes.fields.networks import MLP

POOL, BATCH, NEAR = 1 << 14, 1 << 12, 0.05  # points known and looked at in a step when fitting; their spread (of radius)


def neus(f: Float[Tensor, " N"], s: Tensor) -> Float[Tensor, " N"]:
    """Density [N] = phi_s(f) / Phi_s(f) = s / (1 + exp(s f)) at signed distances [N]."""
    return s * torch.sigmoid(-s * f)


def approach(cos: Float[Tensor, " N"], annealed: float) -> Float[Tensor, " N"]:
    """Rates [N] at which the distance falls along rays at cosines `cos` [N] to the normal (threestudio's NeuS).

    When all is annealed (1) it is -cos, 0 where the ray leaves the surface; at first (0) it is (1 - cos) / 2, so that rays of
    every direction have a gradient.
    """
    return relu(0.5 - 0.5 * cos) * (1 - annealed) + relu(-cos) * annealed


def grazing(f: Float[Tensor, " N"], fall: Float[Tensor, " N"], s: Tensor, step: float) -> Float[Tensor, " N"]:
    """Density [N] of steps in whose middles the distance is f [N] and falls by `fall` [N] per world unit, so that the alpha
    1 - exp(-density step) is (Phi(s f0) - Phi(s f1)) / Phi(s f0), f0 and f1 the distances at the ends of the step."""
    half = fall * (step / 2)
    return (logsigmoid(s * (f + half)) - logsigmoid(s * (f - half))) / step


def volsdf(f: Float[Tensor, " N"], s: Tensor) -> Float[Tensor, " N"]:
    """Density [N] = s Psi(-f), Psi the distribution function of Laplace with scale 1 / s, s <= 80, at signed distances
    [N]."""
    s = s.clamp(max=80.0)
    return s * (0.5 + 0.5 * f.sign() * torch.expm1(-s * f.abs()))


DENSITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"neus": neus, "volsdf": volsdf}


class Sharpness(nn.Module):
    """The trained number v of s = exp(10 v)."""

    def __init__(self, v: float) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.tensor([v]))

    def forward(self) -> Tensor:
        """s [1], per world unit, in [1e-6, 1e6]."""
        return torch.exp(10 * self.variance).clamp(1e-6, 1e6)


class SDF(Gridded, DistanceField):
    """Signed distance and three features from a hash encoding and two small networks, around a sphere.

    density: how density follows from distance
    cosine_anneal: of neus: steps over which rays that meet the surface at an angle come to see less of it; 0: they do at once;
        null: never
    variance: v to begin with, trained; the density inside is s = exp(10 v) per world unit
    sphere: radius of the sphere to begin with (world units)
    fit: mesh file to begin with, centred; z up in PLY and STL files, y up in all others
    fit_size: half of that mesh's longest side (world units)
    fit_steps: Adam steps that fit it
    normal: where normals come from: forward differences of the distance, its exact gradient, or nowhere
    normal_step: step of the differences (world units); progressive: a cell of the finest grid in use
    """

    def __init__(self, rng: Streams, *, growth: float = 1.381912879967776,
                 density: Literal["neus", "volsdf"] = "neus", cosine_anneal: int | None = 10000,
                 variance: float = 0.3, sphere: float = 0.5, fit: str | None = None, fit_size: float = 0.5,
                 fit_steps: int = 500,
                 normal: Literal["finite_difference", "analytic", "none"] = "finite_difference",
                 normal_step: float | Literal["progressive"] = "progressive", **keys: Any) -> None:
        super().__init__(rng, growth=growth, **keys)
        self.sdf_network = MLP(rng.of("sdf"), *self.widths, 1)
        self.feature_network = MLP(rng.of("features"), *self.widths, 3)
        self.sphere = sphere
        self.sharpness = Sharpness(variance)  # after the table, which must lie at an even place in theta
        self.thicken, self.normal, self.has_normals = DENSITIES[density], normal, normal != "none"
        if cosine_anneal is not None and cosine_anneal < 0:
            raise UserError(f"cosine_anneal: needs 0 or more steps, or null, got {cosine_anneal}")
        self.normal_step, self.cosine_anneal = normal_step, cosine_anneal
        self.directed = density == "neus" and cosine_anneal is not None
        self.at(0)
        self.rng, self.fit_steps = rng, fit_steps
        self.mesh = None if fit is None else triangles.load(fit, fit_size)
        self.refresh(0, 0.0, rng)

    def begin(self) -> None:
        if self.mesh is not None:
            self._fit(*self.mesh, self.fit_steps, self.rng.of("fit"))
            self.renew(self.rng)

    def at(self, tau: int) -> None:
        super().at(tau)
        self.annealed = min(1.0, tau / self.cosine_anneal) if self.cosine_anneal else 1.0

    @property
    def difference(self) -> float:
        """The step along which the distance is compared for a normal, now (world units)."""
        if self.normal_step != "progressive":
            return self.normal_step
        return 2 * self.radius / (self.encoding.levels[self.encoding.active - 1].scale + 1)

    def distance(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        return self.sdf_network(self.encoding(self._unit(x)))[0] + self._ball(x)[0]

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        return self.thicken(self.distance(x), self.sharpness())

    def probe(self, x: Float[Tensor, "N 3"], normals: bool, along: RaySteps | None = None
              ) -> tuple[Float[Tensor, " N"], Callable[[Tensor | slice], Values]]:
        unit = self._unit(x)
        directed = self.directed and along is not None
        slopes = normals or directed
        analytic = slopes and self.normal == "analytic"
        read = self.encoding.read(unit, analytic)
        with torch.no_grad():
            density = self.thicken(self.sdf_network(read[0])[0] + self._ball(x)[0], self.sharpness())

        def values(which: Tensor | slice) -> Values:
            some = x[which]
            code, pull = self.encoding.attach(unit[:, which], read[:, :, which])
            ball, radial = self._ball(some)
            if analytic:
                raw, weights = self.sdf_network.value_and_gradient(code)
                slope = pull(weights) / (2 * self.radius) + radial
            else:
                raw = self.sdf_network(code)[0]
                slope = self._differences(some, raw + ball) if slopes else None
            unit_slope = slope * slope.square().sum(0).clamp(min=1e-24).rsqrt() if slopes else None
            if directed:
                fall = approach((unit_slope * along.directions[which].T).sum(0), self.annealed)
                density = grazing(raw + ball, fall, self.sharpness(), along.length)
            else:
                density = self.thicken(raw + ball, self.sharpness())
            features = self.feature_network(code).T
            return Values(density, features, *((unit_slope.T, slope.T) if normals else (None, None)))
        return density, values

    def _differences(self, x: Tensor, f: Tensor) -> Tensor:
        """The slope [3, N] from distances f [N] at points [N, 3] and at one step along each axis, away from the box's
        wall."""
        step = self.difference
        ahead = torch.where(x + step > self.radius, -step, step)
        there = x + torch.eye(3, device=x.device)[:, None] * ahead
        return (self.distance(there.view(-1, 3)).view(3, -1) - f) / ahead.T

    def _ball(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The signed distance [N] of the sphere to begin with, and its gradient [3, N]."""
        x = x.T.contiguous()
        norm = x.square().sum(0).sqrt()
        return norm - self.sphere, x / norm.clamp(min=1e-9)

    def _fit(self, vertices: Tensor, faces: Tensor, steps: int, rng: Streams) -> None:
        """Least squares of the distance to a closed mesh, half of the points close to it (TextMesh's start from a shape)."""
        near = triangles.scattered(vertices, faces, POOL // 2, rng) + NEAR * self.radius * normal_draws(
            rng("near"), POOL // 2, 3)
        far = uniform(rng("far"), POOL // 2, 3, lo=-self.radius, hi=self.radius)
        x = torch.cat([near.clamp(-self.radius, self.radius), far])
        x, target = (part.to(self.encoding.table.device) for part in (x, triangles.signed_distance(vertices, faces, x)))
        trained = [{"params": self.encoding.parameters(), "lr": 1e-2}, {"params": self.sdf_network.parameters()}]
        optimiser = torch.optim.Adam(trained, lr=1e-3, betas=(0.9, 0.99), eps=1e-15)
        for step in range(steps):
            some = torch.randint(POOL, (BATCH,), generator=rng(f"batch{step}"))
            optimiser.zero_grad()
            with torch.enable_grad():
                mse_loss(self.distance(x[some]), target[some]).backward()
            optimiser.step()
        optimiser.zero_grad()
