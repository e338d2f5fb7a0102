"""Cameras, and the image that a renderer makes of them (DreamFusion, section 3.2).

Letters: B views, H x W pixels, S samples along all rays together. World: right-handed, z up, azimuth 0 on +x ("front").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import pi
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

UP = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Views:
    """A batch of pinhole cameras, each with a point light."""

    c2w: Float[Tensor, "B 4 4"]  # columns right, up, -look, position
    fovy: Float[Tensor, " B"]  # rad
    azimuth: Float[Tensor, " B"]  # rad in (-pi, pi]: 0 front (+x), +pi/2 left (+y)
    elevation: Float[Tensor, " B"]  # rad
    distance: Float[Tensor, " B"]
    light: Float[Tensor, "B 3"]  # world position of the point light
    size: tuple[int, int]  # H, W
    unlit: bool = False  # whether materials show the albedo, without shading
    prompts: tuple[int, ...] = ()  # B places in the run's list of prompts; empty: the first prompt for all

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, some: slice) -> "Views":
        """Some of the views."""
        return Views(self.c2w[some], self.fovy[some], self.azimuth[some], self.elevation[some], self.distance[some],
                     self.light[some], self.size, self.unlit, self.prompts[some])

    def under(self, prompts: Sequence[int]) -> "Views":
        """The same cameras, each of an object of its own prompt."""
        return replace(self, prompts=tuple(prompts))

    def runs(self) -> list[tuple[int, range]]:
        """The prompts of adjacent views with the same one, and the rows of these."""
        found: list[tuple[int, range]] = []
        for row, prompt in enumerate(self.prompts or (0,) * len(self)):
            if found and found[-1][0] == prompt:
                found[-1] = (prompt, range(found[-1][1].start, row + 1))
            else:
                found.append((prompt, range(row, row + 1)))
        return found

    def to(self, device: torch.device | str) -> "Views":
        """The same views with their tensors on `device`."""
        tensors: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def resized(self, size: tuple[int, int]) -> "Views":
        """The same cameras with another number of pixels."""
        return replace(self, size=size)

    def farther(self, factor: float) -> "Views":
        """The same cameras and lights, `factor` times as far from the origin."""
        c2w = self.c2w.clone()
        c2w[:, :3, 3] *= factor
        return replace(self, c2w=c2w, distance=self.distance * factor, light=self.light * factor)

    def rays(self) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W 3"]]:
        """Origins and unit directions of the rays through the pixel centres; row 0 is the top."""
        H, W = self.size
        device = self.c2w.device
        j, i = torch.meshgrid(torch.arange(H, device=device), torch.arange(W, device=device), indexing="ij")
        focal = H / (2 * torch.tan(self.fovy / 2))[:, None, None]
        x, y = (i + 0.5 - W / 2) / focal, -(j + 0.5 - H / 2) / focal
        directions = torch.stack([x, y, -torch.ones_like(x)], -1).flatten(1, 2) @ self.c2w[:, :3, :3].mT
        directions = normalize(directions, dim=-1).unflatten(1, (H, W))
        return self.c2w[:, None, None, :3, 3].expand_as(directions), directions


@dataclass(frozen=True)
class Samples:
    """The quadrature points behind an image, packed ray after ray: what penalties need."""

    ray: Int[Tensor, " S"]  # index into the B * H * W rays, ascending
    t: Float[Tensor, " S"]  # distance along the ray
    weights: Float[Tensor, " S"]  # share of the pixel
    positions: Float[Tensor, "S 3"]
    directions: Float[Tensor, "S 3"]  # unit
    normals: Float[Tensor, "S 3"] | None  # unit, where computed
    slope: Float[Tensor, "E 3"] | None = None  # gradient of a signed distance at some of them, where computed
    nearby: Callable[[float], Tensor] | None = None  # normals [S, 3] at points displaced by so much (standard deviation)


@dataclass(frozen=True)
class Triangles:
    """The closed mesh behind an image."""

    vertices: Float[Tensor, "V 3"]  # world units
    faces: Int[Tensor, "F 3"]  # int64, counterclockwise seen from outside


@dataclass(frozen=True)
class Screen:
    """Where the N points of a cloud are seen."""

    means: Float[Tensor, "B N 2"]  # pixels, x to the right and y down; keeps its gradient
    visible: Bool[Tensor, "B N"]  # whether a point covers a pixel


@dataclass(frozen=True)
class Image:
    """What a renderer makes of a batch of views."""

    rgb: Float[Tensor, "B H W 3"]  # composited on the background
    opacity: Float[Tensor, "B H W 1"]
    depth: Float[Tensor, "B H W 1"]  # sum of weights times t, world units
    normal: Float[Tensor, "B H W 3"] | None = None  # composited, unit (zero where the ray is empty), where computed
    samples: Samples | None = None
    surface: Triangles | None = None
    screen: Screen | None = None
    behind: Float[Tensor, "B H W 3"] | None = None  # the background that rgb was composited on


def joined(images: Sequence[Image]) -> Image:
    """The images of volumes as those of one batch."""
    def of(name: str) -> Any:
        values = [getattr(image, name) for image in images]
        return None if values[0] is None else torch.cat(values)
    return Image(of("rgb"), of("opacity"), of("depth"), of("normal"), _joined_samples(images), behind=of("behind"))


def _joined_samples(images: Sequence[Image]) -> Samples | None:
    parts = [image.samples for image in images if image.samples is not None]
    if len(parts) < len(images):
        return None
    before = [0, *accumulate(image.opacity.numel() for image in images)]

    def of(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    functions = [part.nearby for part in parts if part.nearby is not None]

    def nearby(deviation: float) -> Tensor:
        return torch.cat([function(deviation) for function in functions])
    ray = torch.cat([part.ray + rays for part, rays in zip(parts, before)])
    return Samples(ray, of("t"), of("weights"), of("positions"), of("directions"), of("normals"), of("slope"),
                   nearby if len(functions) == len(parts) else None)


def look_at(position: Float[Tensor, "B 3"], target: Float[Tensor, "*to 3"], up: Float[Tensor, "*up 3"]
            ) -> Float[Tensor, "B 4 4"]:
    """Camera-to-world matrices of cameras at `position` that look at `target` with `up` upwards."""
    look = normalize(target - position, dim=-1)
    right = normalize(torch.linalg.cross(look, up), dim=-1)
    up = normalize(torch.linalg.cross(right, look), dim=-1)
    c2w = torch.eye(4).repeat(len(position), 1, 1)
    c2w[:, :3] = torch.stack([right, up, -look, position], -1)
    return c2w


def on_sphere(azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"], distance: Float[Tensor, " B"]
              ) -> Float[Tensor, "B 3"]:
    """World positions of points given in spherical coordinates (rad)."""
    flat = elevation.cos()
    return torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), elevation.sin()], -1) * distance[..., None]


def wrapped(angle: Tensor) -> Tensor:
    """The same angles in (-pi, pi]."""
    return pi - (pi - angle) % (2 * pi)


def orbit(azimuth: Tensor | float, elevation: Tensor | float, distance: Tensor | float, fovy: Tensor | float,
          size: tuple[int, int], light: Tensor | None = None) -> Views:
    """Exact views of the origin from spherical positions (rad), broadcast together; the light is at the cameras unless
    given."""
    given = [torch.as_tensor(value, dtype=torch.float32).reshape(-1) for value in (azimuth, elevation, distance, fovy)]
    around, above, far, angle = (value.contiguous() for value in torch.broadcast_tensors(*given))
    position = on_sphere(around, above, far)
    c2w = look_at(position, torch.zeros(3), torch.tensor(UP).expand_as(position))
    return Views(c2w, angle, wrapped(around), above, far, position if light is None else light, size)


def turntable(n: int, elevation: float, distance: float, fovy: float, size: tuple[int, int]) -> Views:
    """n exact views at even azimuths from the front on (rad), the light at the camera."""
    return orbit(torch.arange(n) * (2 * pi / n), elevation, distance, fovy, size)
