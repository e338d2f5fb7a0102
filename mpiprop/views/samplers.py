"""Random cameras and lights around the object (DreamFusion, section 3.2; Magic3D, section 5).

Letters: B views in G groups. Every draw has a stream of its own, so none shifts another.
"""

from bisect import bisect_right
from dataclasses import replace
from math import pi, radians
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError
from mpiprop.core.schedules import Schedule
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.views.cameras import UP, Views, look_at, on_sphere, orbit, turntable, wrapped
from mpiprop.views.reference import Pose


def milestone(schedule: Schedule, tau: int) -> int:
    """The whole number in force at step tau: a number, or the value of the last [step, value] not after tau."""
    if isinstance(schedule, (int, float)):
        return int(schedule)
    return int(schedule[max(bisect_right([step for step, _ in schedule], tau) - 1, 0)][1])


class Random:
    """Random cameras around the origin, with perturbed aim and roll, and a point light for each.

    batch: views per step, a number or [[step, number], ...], each in force from its step on
    group: views per group, evenly spaced in azimuth and alike in elevation, distance and field of view; 4 for MVDream
    size: pixels per side, a number or [[step, number], ...], each in force from its step on
    azimuth_deg: range of azimuths, 0 is the front (degrees)
    elevation_deg: range of elevations; half of the batches are uniform in angle, half uniform on the sphere (degrees)
    distance: range of distances from the origin (world units)
    distance_by_fovy: distances are in units of 1 / tan(fovy / 2) instead, so that the object's size in the picture does not
        depend on the field of view
    fovy_deg: range of vertical fields of view (degrees)
    batch_uniform_azimuth: one azimuth in each of G equal parts of the range (G = batch / group), not independent ones
    camera_perturb: half width of the uniform displacement of the camera (world units)
    center_perturb: standard deviation of the point looked at (world units)
    up_perturb: standard deviation of the upward direction
    light: "dreamfusion", near the camera's direction, or "magic3d", within 60 degrees of it
    light_distance: range of the light's distance from the origin (world units)
    light_perturb: standard deviation of the "dreamfusion" light's displacement before it is projected (world units)
    progressive_until: step at which the ranges, opening from the front view, are fully open; 0: open from the start
    eval_elevation_deg: elevation of evaluation views (degrees)
    eval_distance: distance of evaluation views (world units)
    eval_fovy_deg: vertical field of view of evaluation views (degrees)
    """

    def __init__(self, *, batch: Schedule = 16, group: int = 1, size: Schedule = 64,
                 azimuth_deg: tuple[float, float] = (-180.0, 180.0),
                 elevation_deg: tuple[float, float] = (-10.0, 90.0), distance: tuple[float, float] = (1.5, 2.0),
                 distance_by_fovy: bool = False, fovy_deg: tuple[float, float] = (40.0, 70.0),
                 batch_uniform_azimuth: bool = True,
                 camera_perturb: float = 0.1, center_perturb: float = 0.2, up_perturb: float = 0.02,
                 light: Literal["dreamfusion", "magic3d"] = "dreamfusion",
                 light_distance: tuple[float, float] = (0.8, 1.5), light_perturb: float = 1.0,
                 progressive_until: int = 0, eval_elevation_deg: float = 15.0, eval_distance: float = 2.0,
                 eval_fovy_deg: float = 70.0) -> None:
        if group < 1:
            raise UserError(f"group: needs at least 1, got {group}")
        _at_least_one(batch=batch, size=size)
        if wrong := [(tau, B) for tau, B in _knots(batch) if B % group]:
            raise UserError(f"a batch of {wrong[0][1]} at step {wrong[0][0]} is not made of groups of {group}")
        if not 0 < min(fovy_deg + (eval_fovy_deg,)) <= max(fovy_deg + (eval_fovy_deg,)) < 180:
            raise UserError(f"fovy_deg {list(fovy_deg)}, eval_fovy_deg {eval_fovy_deg:g}: need numbers between 0 and 180")
        if min(distance + (eval_distance,)) <= 0:
            raise UserError(f"distance {list(distance)}, eval_distance {eval_distance:g}: need numbers above 0")
        self.batch, self.group, self.size = batch, group, size
        self.azimuth, self.elevation, self.fovy = map(_radians, (azimuth_deg, elevation_deg, fovy_deg))
        self.distance, self.distance_by_fovy = distance, distance_by_fovy
        self.batch_uniform_azimuth = batch_uniform_azimuth
        self.camera_perturb, self.center_perturb, self.up_perturb = camera_perturb, center_perturb, up_perturb
        self.light, self.light_distance, self.light_perturb = light, light_distance, light_perturb
        self.progressive_until = progressive_until
        self.eval_elevation, self.eval_distance = radians(eval_elevation_deg), eval_distance
        self.eval_fovy = radians(eval_fovy_deg)

    def __call__(self, tau: int, rng: Streams) -> Views:
        """Returns the views of step tau; azimuth, elevation and distance are those before the perturbation."""
        B, side = milestone(self.batch, tau), milestone(self.size, tau)
        open_ = min(1.0, tau / self.progressive_until) if self.progressive_until else 1.0

        G, each = B // self.group, self.group

        elevation = self._elevation(G, _lerp(self.eval_elevation, self.elevation, open_), rng).repeat_interleave(each)
        lo, hi = _lerp(0.0, self.azimuth, open_)
        u = uniform(rng("camera.azimuth"), G)
        first = lo + (hi - lo) * ((u + torch.arange(G)) / G if self.batch_uniform_azimuth else u)
        azimuth = (first[:, None] + torch.arange(each) * (2 * pi / each)).flatten()
        distance = _between(self.distance, G, rng("camera.distance")).repeat_interleave(each)
        fovy = _between(self.fovy, G, rng("camera.fovy")).repeat_interleave(each)
        if self.distance_by_fovy:
            distance = distance / (fovy / 2).tan()

        position = on_sphere(azimuth, elevation, distance)
        position = position + uniform(rng("camera.position"), B, 3, lo=-1.0) * self.camera_perturb
        center = normal(rng("camera.center"), B, 3) * self.center_perturb
        up = torch.tensor(UP) + normal(rng("camera.up"), B, 3) * self.up_perturb
        return Views(look_at(position, center, up), fovy, wrapped(azimuth), elevation, distance,
                     self._light(position, rng), (side, side))

    def turntable(self, n: int, size: tuple[int, int]) -> Views:
        """n evaluation views at even azimuths from the front on, the light at the camera."""
        return turntable(n, self.eval_elevation, self.eval_distance, self.eval_fovy, size)

    def _elevation(self, B: int, limits: tuple[float, float], rng: Streams) -> Tensor:
        if uniform(rng("camera.elevation_rule"), 1) < 0.5:
            return _between(limits, B, rng("camera.elevation"))
        lo, hi = torch.tensor(limits).sin()
        return _between((lo, hi), B, rng("camera.elevation")).clamp(-1, 1).asin()

    def _light(self, camera: Tensor, rng: Streams) -> Tensor:
        distance = _between(self.light_distance, len(camera), rng("light.distance"))
        if self.light == "dreamfusion":
            moved = camera + normal(rng("light.direction"), *camera.shape) * self.light_perturb
            return normalize(moved, dim=-1) * distance[:, None]
        z = normalize(camera, dim=-1)
        x = normalize(torch.stack([z[:, 1], -z[:, 0], torch.zeros(len(z))], -1), dim=-1)
        frame = torch.stack([x, torch.linalg.cross(z, x), z], -1)
        azimuth = _between((-pi, pi), len(camera), rng("light.azimuth"))
        elevation = _between((pi / 6, pi / 2), len(camera), rng("light.elevation"))
        return (frame @ on_sphere(azimuth, elevation, distance)[:, :, None])[:, :, 0]


class Reference:
    """The camera of the input image, which sees objects unlit.

    size: pixels per side, a number or [[step, number], ...], each in force from its step on
    noise: standard deviation of a displacement (world units) and of a turn (rad) of the camera, drawn once for each size:
        threestudio's error of its rays is 2e-3
    """

    def __init__(self, pose: Pose, *, size: Schedule = 128, noise: float = 0.0) -> None:
        _at_least_one(size=size)
        self.pose, self.size, self.noise = pose, size, noise

    def __call__(self, tau: int, rng: Streams) -> Views:
        """The view of step tau."""
        side, pose = milestone(self.size, tau), self.pose
        views = replace(orbit(pose.azimuth, pose.elevation, pose.distance, pose.fovy, (side, side)), unlit=True)
        if self.noise:
            moved, turned = normal(replace(rng, tau=0)(f"camera.noise/{side}"), 2, 1, 3) * self.noise
            position, look = views.c2w[:, :3, 3], -views.c2w[:, :3, 2]
            c2w = look_at(position + moved, position + moved + look + turned, torch.tensor(UP).expand_as(position))
            views = replace(views, c2w=c2w)
        return views

    def turntable(self, n: int, size: tuple[int, int]) -> Views:
        """n views at even azimuths from the picture's on, the light at the camera."""
        return turntable(n, self.pose.elevation, self.pose.distance, self.pose.fovy, size)


def _at_least_one(**schedules: Schedule) -> None:
    """Raises UserError for a schedule of whole numbers that goes below 1."""
    for name, schedule in schedules.items():
        if (least := min(value for _, value in _knots(schedule))) < 1:
            raise UserError(f"{name}: needs at least 1, got {least}")


def _knots(schedule: Schedule) -> list[tuple[int, int]]:
    """The steps and values of a schedule of whole numbers."""
    knots = [(0, schedule)] if isinstance(schedule, (int, float)) else schedule
    return [(int(step), int(value)) for step, value in knots]


def _radians(limits: tuple[float, float]) -> tuple[float, float]:
    return radians(limits[0]), radians(limits[1])


def _lerp(start: float, limits: tuple[float, float], amount: float) -> tuple[float, float]:
    return start + (limits[0] - start) * amount, start + (limits[1] - start) * amount


def _between(limits: tuple[float, float], B: int, rng: torch.Generator) -> Tensor:
    return uniform(rng, B, lo=limits[0], hi=limits[1])
