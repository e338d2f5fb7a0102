"""Cameras point where they say and random ones stay in their ranges."""

from math import pi, radians, sin

import pytest
import torch

from mpiprop.core.streams import Streams
from mpiprop.views.cameras import look_at, orbit, turntable
from mpiprop.views.reference import Pose
from mpiprop.views.samplers import Random, Reference, milestone


def pixel_of(views, point):
    """Row and column [2] of a world point in the first view, by inverting the matrix, not by the code under test."""
    x, y, z, _ = torch.linalg.inv(views.c2w[0]) @ torch.tensor([*point, 1.0])
    H, W = views.size
    focal = H / 2 / torch.tan(views.fovy[0] / 2)
    return torch.stack([H / 2 - focal * y / -z, W / 2 + focal * x / -z])


def drawn(steps=200, tau=None, **keys):
    sampler = Random(**keys)
    views = [sampler(step if tau is None else tau, Streams(1, step)) for step in range(steps)]
    return {name: torch.cat([getattr(v, name) for v in views])
            for name in ("azimuth", "elevation", "distance", "fovy", "c2w", "light")}


def test_front_is_plus_x_and_plus_90_degrees_is_plus_y():
    views = orbit(torch.tensor([0.0, pi / 2]), 0.0, 2.0, 1.0, (8, 8))
    torch.testing.assert_close(views.c2w[:, :3, 3], torch.tensor([[2.0, 0, 0], [0, 2, 0]]))
    torch.testing.assert_close(views.light, views.c2w[:, :3, 3])


def test_a_point_at_plus_y_is_on_the_right_of_the_front_view_and_plus_z_above():
    views = orbit(0.0, 0.0, 2.0, 1.0, (64, 64))
    row, column = pixel_of(views, (0.0, 0.3, 0.2))
    assert row < 32 < column


def test_rays_pass_through_the_points_that_project_to_their_pixels():
    views = orbit(0.7, 0.4, 2.0, 0.9, (6, 10))
    origins, directions = views.rays()
    assert directions.shape == origins.shape == (1, 6, 10, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, 6, 10))
    for i, j in ((0, 0), (2, 7), (5, 9)):
        point = origins[0, i, j] + 1.7 * directions[0, i, j]
        torch.testing.assert_close(pixel_of(views, point.tolist()), torch.tensor([i + 0.5, j + 0.5]), rtol=0, atol=1e-4)


def test_look_at_is_a_rotation_whose_middle_ray_meets_the_target():
    c2w = look_at(torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.1, -0.2, 0.3]]), torch.tensor([[0.1, 0.0, 1.0]]))
    rotation = c2w[0, :3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
    assert torch.linalg.det(rotation) > 0
    towards = torch.tensor([-0.9, -2.2, -0.2])
    torch.testing.assert_close(-rotation[:, 2], towards / towards.norm())


def test_turntable_goes_round_from_the_front():
    views = turntable(4, radians(15), 2.0, 1.2, (4, 4))
    torch.testing.assert_close(views.azimuth, torch.tensor([0, pi / 2, pi, -pi / 2]))
    torch.testing.assert_close(views.c2w[:, 2, 3], torch.full((4,), 2 * sin(radians(15))))


@pytest.mark.parametrize("light", ["dreamfusion", "magic3d"])
def test_every_draw_stays_in_its_range_and_fills_it(light):
    found = drawn(elevation_deg=(-10, 45), light=light)
    for name, lo, hi in (("azimuth", -pi, pi), ("elevation", radians(-10), radians(45)), ("distance", 1.5, 2.0),
                         ("fovy", radians(40), radians(70))):
        values = found[name]
        assert lo - 1e-5 <= values.min() < lo + 0.05 * (hi - lo) and hi - 0.05 * (hi - lo) < values.max() <= hi + 1e-5
    distance = found["light"].norm(dim=-1)
    assert 0.8 - 1e-5 <= distance.min() < 0.82 and 1.48 < distance.max() <= 1.5 + 1e-5
    moved = found["c2w"][:, :3, 3].norm(dim=-1) - found["distance"]
    assert moved.abs().max() < 0.1 * 3 ** 0.5 and moved.std() > 0.03
    if light == "magic3d":
        cosine = torch.cosine_similarity(found["light"], found["c2w"][:, :3, 3], dim=-1)
        assert 0.5 - 1e-4 <= cosine.min() < 0.52


def test_distances_by_the_field_of_view_leave_the_size_in_the_picture():
    """A sphere of radius r at distance d fills r / d / tan(fovy / 2) of half the picture's height, near its middle."""
    found = drawn(distance=(0.8, 1.0), fovy_deg=(15, 60), distance_by_fovy=True, camera_perturb=0.0)
    size = found["distance"] * (found["fovy"] / 2).tan()
    assert 0.8 <= size.min() < 0.81 and 0.99 < size.max() <= 1.0 + 1e-6 and found["distance"].max() > 5
    torch.testing.assert_close(found["c2w"][:, :3, 3].norm(dim=-1), found["distance"])


def test_half_of_the_batches_have_elevations_uniform_in_angle_and_half_on_the_sphere():
    """Fraction above 30 degrees in [-10, 90]: 60/100 uniform in angle, (1 - .5) / (1 + sin 10) on the sphere."""
    found = (drawn(4000)["elevation"] > radians(30)).float().view(4000, 16).mean(1)
    assert abs(found.mean().item() - (0.6 + 0.42602) / 2) < 0.01
    rule = torch.tensor([torch.rand(1, generator=Streams(1, s)("camera.elevation_rule")) < 0.5 for s in range(4000)])
    assert abs(found[rule].mean().item() - 0.6) < 0.01 and abs(found[~rule].mean().item() - 0.42602) < 0.01


def test_batch_uniform_azimuths_fall_one_into_each_part():
    views = Random(batch=8)(3, Streams(0, 3))
    parts = ((views.azimuth.double() + pi) / (2 * pi) * 8).floor()
    assert sorted(parts.tolist()) == list(range(8))


def test_disturbances_have_their_published_size():
    calm = {"camera_perturb": 0.0, "up_perturb": 0.0}
    views = drawn(**calm, center_perturb=0.2)
    look, position = -views["c2w"][:, :3, 2], views["c2w"][:, :3, 3]
    missed = torch.linalg.cross(position, look).norm(dim=-1)  # distance of the optical axis from the origin
    assert abs(missed.square().mean().item() - 2 * 0.2 ** 2) < 0.006  # two normal components lie across it
    straight = drawn(steps=10, **calm, center_perturb=0.0)
    torch.testing.assert_close(straight["c2w"][:, :3, 2] * straight["distance"][:, None], straight["c2w"][:, :3, 3])


def test_the_pictures_camera_is_displaced_and_turned_once_for_each_size():
    """By deviates of that size; the same in every step of the same size, for one seed; it stays a camera."""
    pose = Pose(0.0, 0.1, 3.8, 0.35)
    plain = Reference(pose, size=128)(0, Streams(0, 0))
    camera = Reference(pose, size=[[0, 64], [5, 128]], noise=2e-3)
    first, same, other = (camera(tau, Streams(0, tau)).c2w for tau in (0, 4, 5))
    assert torch.equal(first, same) and not torch.equal(first, other)
    c2w = torch.cat([camera(0, Streams(seed, 0)).c2w for seed in range(400)])
    moved, turned = (c2w - plain.c2w)[:, :3, 3], (plain.c2w[:, :3, 2] - c2w[:, :3, 2])
    assert moved.std(0) == pytest.approx(torch.full((3,), 2e-3), rel=0.2) and moved.mean(0).abs().max() < 4e-4
    across = torch.stack([turned @ plain.c2w[0, :3, axis] for axis in (0, 1)])
    assert across.std(1) == pytest.approx(torch.full((2,), 2e-3), rel=0.2)
    rotation = c2w[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(400, 3, 3), atol=1e-5, rtol=0)
    assert torch.equal(Reference(pose, size=128)(3, Streams(5, 3)).c2w, plain.c2w)


def test_progressive_views_open_from_the_front_and_stay_in_range():
    keys = {"progressive_until": 100, "eval_elevation_deg": 15.0, "steps": 50}
    first, middle, after = (drawn(tau=tau, **keys) for tau in (0, 50, 1000))
    assert first["azimuth"].abs().max() == 0 and (first["elevation"] - radians(15)).abs().max() < 1e-6
    assert middle["azimuth"].abs().max() <= pi / 2 and middle["elevation"].max() <= radians(52.5) + 1e-5
    assert after["elevation"].min() >= radians(-10) - 1e-5 and after["elevation"].max() > radians(80)


def test_milestones_are_step_functions():
    assert [milestone([[0, 64], [5000, 128.0]], tau) for tau in (0, 4999, 5000, 9000)] == [64, 64, 128, 128]
    assert milestone(16, 3) == 16
    views = Random(batch=[[0, 2], [10, 1]], size=[[0, 4], [10, 8]])(10, Streams(0, 10))
    assert len(views) == 1 and views.size == (8, 8)


def test_views_are_a_pure_function_of_seed_and_step_and_streams_do_not_shift_each_other():
    changed = {"light": "magic3d", "camera_perturb": 0.0}
    one, again, other = (Random(**keys)(5, Streams(2, 5)) for keys in ({}, {}, changed))
    torch.testing.assert_close(one.c2w, again.c2w, rtol=0, atol=0)
    torch.testing.assert_close(one.fovy, other.fovy, rtol=0, atol=0)
    torch.testing.assert_close(one.azimuth, other.azimuth, rtol=0, atol=0)
    assert not torch.equal(one.c2w, Random()(5, Streams(3, 5)).c2w)
