"""Objects held against true solids: known copies, closed forms, naive loops."""

from math import pi, radians

import numpy as np
import pytest
import torch
import trimesh
from skimage.measure import marching_cubes
from torch import Tensor

from mpiprop.metrics import truth
from mpiprop.metrics.occupancy import inside
from mpiprop.metrics.truth import Alignment
from mpiprop.views.cameras import turntable


def box(centre: tuple[float, ...], half: tuple[float, ...], x: Tensor) -> Tensor:
    q = (x - torch.tensor(centre)).abs() - torch.tensor(half)
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


CHAIR = [((0.0, 0.0, -0.1), (0.3, 0.25, 0.06)), ((-0.24, 0.0, 0.2), (0.06, 0.25, 0.3)), ((0.1, 0.15, -0.3), (0.08, 0.06, 0.2))]


class Chair:
    """A seat with a back and one leg: no symmetry. Its colours are its coordinates."""

    radius = 0.6

    def distance(self, x: Tensor) -> Tensor:
        return torch.stack([box(centre, half, x) for centre, half in CHAIR]).amin(0)

    def colour(self, x: Tensor) -> Tensor:
        return (x + 1) / 2


def test_points_inside_a_ball_and_its_hole() -> None:
    """Within a shell of two spheres, the inner one turned inside out: between the radii, but for a margin of the facets."""
    outer, inner = trimesh.creation.icosphere(4, 1.0), trimesh.creation.icosphere(4, 0.5)
    vertices = np.concatenate([outer.vertices, inner.vertices])
    faces = np.concatenate([outer.faces, inner.faces[:, ::-1] + len(outer.vertices)])
    axes = tuple(np.linspace(-1.2, 1.2, n) for n in (41, 37, 50))
    found = inside(vertices, faces, axes)
    radius = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij"), -1), axis=-1)
    sure = (np.abs(radius - 1) > 0.01) & (np.abs(radius - 0.5) > 0.01)
    np.testing.assert_array_equal(found[sure], ((radius < 1) & (radius > 0.5))[sure])


def test_overlapping_parts_count_once() -> None:
    a, b = (trimesh.creation.box((1, 1, 1), trimesh.transformations.translation_matrix((x, 0, 0))) for x in (0, 0.5))
    both = trimesh.util.concatenate([a, b])
    axes = (np.linspace(-0.99, 1.49, 63), np.linspace(-0.9, 0.9, 20), np.linspace(-0.9, 0.9, 22))
    x, y, z = np.meshgrid(*axes, indexing="ij")
    expected = (x > -0.5) & (x < 1) & (np.abs(y) < 0.5) & (np.abs(z) < 0.5)
    np.testing.assert_array_equal(inside(both.vertices, both.faces, axes), expected)


@pytest.mark.parametrize("yaw, scale, shift", [(0.0, 1.0, (0.0, 0.0, 0.0)), (2.0, 1.6, (0.3, -0.2, 0.15)),
                                               (-2.6, 0.4, (-0.1, 0.5, -0.4))])
def test_a_moved_copy_is_found_and_is_the_same(yaw: float, scale: float, shift: tuple[float, float, float]) -> None:
    """IoU near 1, a Chamfer distance near that of two samples of one surface, the known rotation, scale and shift."""
    axis = torch.linspace(-0.7, 0.7, 141)
    field = Chair().distance(torch.cartesian_prod(axis, axis, axis)).view(141, 141, 141).numpy()
    vertices, faces, *_ = marching_cubes(field, 0.0)
    known = Alignment(yaw, scale, shift)
    there = (torch.from_numpy(vertices.copy()) * 0.01 - 0.7 - torch.tensor(shift)) @ known.rotation / scale
    found = truth.likeness(there.numpy(), faces, Chair())
    assert found.iou > 0.97 and found.chamfer < 0.004
    assert abs((found.alignment.yaw - yaw + pi) % (2 * pi) - pi) < radians(1)
    assert found.alignment.scale == pytest.approx(scale, rel=0.01)
    np.testing.assert_allclose(found.alignment.shift, shift, atol=0.005)


class Ball:
    """A red ball of radius 0.4."""

    radius = 0.5

    def distance(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1) - 0.4

    def colour(self, x: Tensor) -> Tensor:
        return torch.tensor([0.8, 0.1, 0.0]).expand_as(x)


def cube(side: float) -> trimesh.Trimesh:
    return trimesh.creation.box((side,) * 3)


def test_a_cube_in_the_place_of_a_ball() -> None:
    """The best cube has the IoU that a closed form gives: its side is between those that touch from inside and outside."""
    ball, solid = Ball(), cube(1.0)
    found = truth.likeness(np.asarray(solid.vertices, np.float32), np.asarray(solid.faces), ball)
    best = 0.0
    for half in np.linspace(0.4 / 3 ** 0.5, 0.4, 400):  # the ball minus six caps is in the cube
        cap = max(0.0, 0.4 - half)
        common = 4 / 3 * pi * 0.4 ** 3 - 6 * pi * cap ** 2 * (3 * 0.4 - cap) / 3 if half > 0.4 / 2 ** 0.5 else 0.0
        best = max(best, common / (4 / 3 * pi * 0.4 ** 3 + 8 * half ** 3 - common))
    assert found.iou == pytest.approx(best, abs=0.015)


def test_chamfer_is_that_of_two_loops() -> None:
    a, b = np.random.default_rng(0).random((40, 3)), np.random.default_rng(1).random((30, 3))
    there = sum(min(np.linalg.norm(x - y) for y in b) for x in a) / len(a)
    back = sum(min(np.linalg.norm(x - y) for x in a) for y in b) / len(b)
    assert truth.chamfer(a, b) == pytest.approx((there + back) / 2)


def test_a_ball_is_drawn_as_geometry_has_it() -> None:
    """Its outline is the tangent cone's; colours are darker to the rim by the cosine of the light from the camera."""
    size, distance, fovy = 64, 2.0, 0.6
    (drawn,) = truth.pictures(Ball(), turntable(1, 0.3, distance, fovy, (size, size)), Alignment(0.0, 1.0, (0.0, 0.0, 0.0)))
    centre = (torch.arange(size) + 0.5 - size / 2) * (2 * np.tan(fovy / 2) / size)
    tangent = torch.hypot(centre[:, None], centre[None])
    edge = np.tan(np.arcsin(0.4 / distance))
    sure = (tangent - edge).abs() > 0.02
    np.testing.assert_array_equal((drawn < 1).any(-1)[sure], (tangent < edge)[sure])
    sine = (tangent.atan().sin() * distance / 0.4).clamp(max=1)  # of the angle between the normal and the ray
    red = 0.8 * (truth.AMBIENT + (1 - truth.AMBIENT) * (1 - sine ** 2).sqrt())
    inner = tangent < 0.8 * edge
    torch.testing.assert_close(drawn[..., 0][inner], red[inner], atol=0.02, rtol=0)


def test_cameras_follow_the_alignment() -> None:
    """An object turned by a quarter, twice as large and moved is seen as the truth is from the side and half as far away."""
    straight = truth.pictures(Chair(), turntable(4, 0.3, 1.8, 0.85, (32, 32)), Alignment(0.0, 1.0, (0.0, 0.0, 0.0)))
    turned = truth.pictures(Chair(), turntable(4, 0.3, 3.6, 0.85, (32, 32)), Alignment(pi / 2, 0.5, (0.0, 0.0, 0.0)))
    assert (straight[1:] - turned[:-1]).abs().mean() < 1e-3 < (straight - turned).abs().mean()


def test_psnr_and_ssim_of_views() -> None:
    """The closed form of a constant error; one for the same picture; the mean over views."""
    a = torch.rand(2, 24, 24, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    psnr, ssim = truth.psnr_and_ssim(a, a + torch.tensor([0.1, 0.01])[:, None, None, None])
    assert psnr == pytest.approx((20 + 40) / 2, abs=1e-3) and 0.5 < ssim < 1
    assert truth.psnr_and_ssim(a, a + 0.01)[1] > ssim


def test_an_object_without_an_inside_is_as_unlike_as_can_be() -> None:
    flake = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    assert truth.likeness(flake, np.array([[0, 1, 2]]), Chair()).iou < 0.01
