"""Surfaces lie where the distance vanishes, close, face outwards, and their gradients are those of differences."""

from math import exp, pi

import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from mpiprop.core.errors import RunError, UserError
from mpiprop.core.streams import Streams
from mpiprop.guidance.surface_losses import eikonal, laplacian, normal_consistency
from mpiprop.render.volume import Volume
from mpiprop.objective.scene import Scene
from mpiprop.appearance.backgrounds import NeuralEnvironment, Solid
from mpiprop.shapes.surfaces.dmtet import DMTet
from mpiprop.shapes.fields.hashgrid import HashGrid
from mpiprop.appearance.materials import Diffuse
from mpiprop.shapes.fields.sdf import SDF, neus, volsdf
from mpiprop.shapes.surfaces.tetrahedra import crossing, lattice, march
from mpiprop.geometry.triangles import load, signed_distance, vertex_normals
from mpiprop.views.cameras import orbit

RNG = Streams(0, 0)
SMALL = dict(levels=4, log2_table=10, base_resolution=4, growth=1.7, hidden=16)


def draws(*shape, name="x"):
    return torch.rand(shape, generator=RNG(name), dtype=torch.float64)


def mesh(vertices, faces):
    return trimesh.Trimesh(vertices.detach().numpy(), faces.numpy(), process=False)


def sphere(subdivisions=3):
    ball = trimesh.creation.icosphere(subdivisions)
    return torch.tensor(ball.vertices), torch.tensor(ball.faces)


def surface(resolution, distance):
    """Vertices and faces where `distance` vanishes on the lattice of the unit cube."""
    grid = lattice(resolution)
    values = distance(grid.vertices)
    ends, faces = march(grid.tetrahedra, (values <= 0) & ~grid.border)
    return crossing(grid.vertices[ends], values[ends]), faces


def differences(function, parameter, index, step=1e-6):
    """The central difference quotient of a scalar function in one number of a parameter."""
    values = []
    for sign in (1, -1):
        parameter.data.view(-1)[index] += sign * step
        values.append(function().item())
        parameter.data.view(-1)[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("resolution", [6, 32])
def test_the_lattice_fills_the_cube_with_equal_tetrahedra(resolution):
    grid = lattice(resolution)
    corners = grid.vertices[grid.tetrahedra.long()].double()
    volume = torch.linalg.det((corners[1:] - corners[0]).transpose(0, 1)) / 6
    torch.testing.assert_close(volume, volume[:1].expand_as(volume))
    edges = (corners[[0, 0, 0, 1, 1, 2]] - corners[[1, 2, 3, 2, 3, 3]]).norm(dim=-1).sort(0)[0]
    assert volume[0] > 0 and (edges - edges[:, :1]).abs().max() < 1e-6
    n = round(0.4 * resolution)
    assert volume.sum() == pytest.approx(1 - 1 / n)  # what lacks is a pyramid on each cell of the cube's sides
    thirds = torch.cat([grid.tetrahedra[list(k)] for k in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))], 1).sort(0)[0].T
    triangles, count = torch.unique(thirds, dim=0, return_counts=True)
    outer, used = (set(ids.view(-1).tolist()) for ids in (triangles[count == 1], grid.tetrahedra))
    assert count.max() == 2 and outer == set(grid.border.nonzero()[:, 0].tolist()) & used


@pytest.mark.parametrize("resolution, vertices, tetrahedra", [(32, 5034, 24444), (64, 36562, 192492), (128, 277410, 1524684)])
def test_lattices_are_of_the_published_sizes(resolution, vertices, tetrahedra):
    grid = lattice(resolution)
    assert len(grid.vertices) == pytest.approx(vertices, rel=0.02)
    assert grid.tetrahedra.shape[1] == pytest.approx(tetrahedra, rel=0.06)


def test_every_case_of_a_tetrahedron_faces_from_inside_to_outside():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    for case in range(16):
        inside = torch.tensor([bool(case >> i & 1) for i in range(4)])
        ends, faces = march(torch.arange(4, dtype=torch.int32)[:, None], inside)
        assert len(faces) == (0, 1, 2, 1, 0)[inside.sum()]
        if len(faces):
            values = torch.where(inside, -1.0, 1.0)
            a, b, c = crossing(corners[ends], values[ends])[faces].unbind(1)
            outwards = corners[~inside].mean(0) - corners[inside].mean(0)
            assert (torch.linalg.cross(b - a, c - a) @ outwards).min() > 0


@pytest.mark.parametrize("resolution, tolerance", [(24, 0.03), (64, 0.004)])
def test_a_sphere_is_closed_faces_outwards_and_has_its_area_and_volume(resolution, tolerance):
    found = mesh(*surface(resolution, lambda x: (x - 0.5).norm(dim=-1) - 0.4))
    assert found.is_watertight and found.is_winding_consistent and found.euler_number == 2
    assert found.volume == pytest.approx(4 / 3 * pi * 0.4 ** 3, rel=tolerance)
    assert found.area == pytest.approx(4 * pi * 0.4 ** 2, rel=tolerance)


def test_a_plane_is_met_exactly_and_the_box_closes_it():
    normal = torch.tensor([0.6, -0.48, 0.64])
    vertices, faces = surface(20, lambda x: (x - 0.5) @ normal)
    inner = ((vertices > 0.15) & (vertices < 0.85)).all(-1)
    assert inner.any() and ((vertices[inner] - 0.5) @ normal).abs().max() < 1e-6
    assert mesh(vertices, faces).is_watertight


def test_a_surface_moves_with_its_distances_and_deformation_as_differences_say():
    shape = DMTet(RNG, radius=1.0, resolution=12, textured=False).double()
    shape.deformation.data.copy_(draws(*shape.deformation.shape) - 0.5)
    weights = draws(*shape.surface()[0].shape, name="weights")

    def weighted():
        return (shape.surface()[0].square() * weights).sum()

    weighted().backward()
    for parameter in (shape.sdf, shape.deformation):
        moving = parameter.grad.view(-1).nonzero()[:, 0]
        assert 50 < len(moving) < len(parameter.grad.view(-1)) / 2
        for index in moving[::len(moving) // 8].tolist():
            quotient = differences(weighted, parameter, index)
            assert parameter.grad.view(-1)[index].item() == pytest.approx(quotient, rel=1e-4, abs=1e-8)


def test_a_vertex_moves_by_less_than_its_share_of_the_box():
    shape = DMTet(RNG, radius=1.0, resolution=16, textured=False)
    before = shape.surface()[0]
    shape.deformation.data[:, 0] = 100.0
    moved = shape.surface()[0] - before
    torch.testing.assert_close(moved[:, 0], (shape.box[1] - shape.box[0])[0].expand(len(moved)) / 16)
    assert moved[:, 1:].abs().max() < 1e-6


def test_an_empty_surface_is_refused_and_a_full_one_is_the_box():
    shape = DMTet(RNG, radius=1.0, resolution=8, textured=False)
    shape.sdf.data.fill_(1.0)
    with pytest.raises(RunError, match="the surface is empty"):
        shape.surface()
    shape.sdf.data.fill_(-1.0)
    assert mesh(*shape.surface()).is_watertight


def test_distances_of_a_mesh_are_those_of_all_its_faces_and_signed_by_its_winding_number(shared):
    vertices, faces = load(str(shared / "meshes/blub.obj"), 0.5)
    assert (vertices.amax(0) - vertices.amin(0)).max() == pytest.approx(1.0) and mesh(vertices, faces).volume > 0
    x = torch.cat([vertices[::700] + 0.03 * (draws(11, 3).float() - 0.5), draws(12, 3).float() - 0.5])
    found = signed_distance(vertices, faces, x)
    corners = vertices.double()[faces]
    share = torch.cartesian_prod(*2 * (torch.linspace(0, 1, 8, dtype=torch.float64),))
    share = share[share.sum(1) <= 1 + 1e-9]
    weights = torch.cat([1 - share.sum(1, keepdim=True), share], 1)
    for point, distance in zip(x.double(), found.double()):
        sampled = (torch.einsum("sc,fcd->fsd", weights, corners) - point).norm(dim=-1).min()
        assert sampled - 0.003 < distance.abs() < sampled + 1e-6
        a, b, c = (corners - point).unbind(1)
        la, lb, lc = (side.norm(dim=-1) for side in (a, b, c))
        angle = 2 * torch.atan2((a * torch.linalg.cross(b, c)).sum(-1), la * lb * lc + (a * b).sum(-1) * lc
                                + (b * c).sum(-1) * la + (c * a).sum(-1) * lb)
        assert (angle.sum() > 2 * pi) == (distance < 0)


def test_distances_of_a_box_are_known_at_its_faces_edges_and_corners():
    box = trimesh.creation.box((2, 2, 2))
    x = torch.cat([draws(500, 3) * 4 - 2, torch.tensor([[1.5, 0, 0], [1.5, 1.5, 0], [2, 2, 2], [0, 0, 0]])])
    q = x.abs() - 1
    expected = q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)
    torch.testing.assert_close(signed_distance(torch.tensor(box.vertices), torch.tensor(box.faces), x), expected)


def test_files_that_are_no_closed_meshes_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load(str(tmp_path / "none.obj"), 0.5)
    ball = trimesh.creation.icosphere(1)
    trimesh.Trimesh(ball.vertices, ball.faces[1:]).export(tmp_path / "open.ply")
    with pytest.raises(UserError, match="not closed"):
        load(str(tmp_path / "open.ply"), 0.5)


def chamfer(one, other, n=30_000):
    """Mean distance between the samples of two meshes, both ways."""
    points = [trimesh.sample.sample_surface(each, n, seed=seed)[0] for seed, each in enumerate((one, other))]
    return sum(cKDTree(a).query(b)[0].mean() for a, b in (points, points[::-1])) / 2


@pytest.mark.slow
def test_a_mesh_is_reproduced_from_its_file(shared):
    path = shared / "meshes/blub.obj"
    shape = DMTet(RNG, radius=1.0, resolution=64, fit=str(path), textured=False)
    shape.begin()
    truth, found = mesh(*load(str(path), 0.5)), mesh(*shape.surface())
    assert found.is_watertight and found.volume == pytest.approx(truth.volume, rel=0.02)
    assert chamfer(found, truth) - chamfer(truth, truth) < 5e-4  # of its length, which is 1
    coarse = DMTet(RNG, radius=1.0, resolution=40, textured=False)
    coarse.begin_with(shape)
    assert chamfer(mesh(*coarse.surface()), truth) - chamfer(truth, truth) < 2e-3


def test_a_refined_shape_begins_with_the_surface_and_the_texture_before_it():
    x = draws(50, 3).float() - 0.5
    for previous, low, high in ((SDF(RNG, radius=1.0, sphere=0.4, **SMALL), 0.397, 0.402),
                                (HashGrid(RNG, radius=1.0, blob_scale=20.0, start_level=4, **SMALL), 0.45, 0.55)):
        previous.encoding.table.data.mul_(100)
        shape = DMTet(RNG.of("other"), radius=1.0, resolution=40, threshold=0.7, **SMALL)
        shape.begin_with(previous)
        radius = shape.surface()[0].norm(dim=-1)
        assert low < radius.min() and radius.max() < high
        assert shape.box[1].max() < 1.25 * high  # close around it
        torch.testing.assert_close(shape.features(x), previous.features(x))
    again = DMTet(RNG.of("third"), radius=1.0, resolution=40, fixed=True, inherit_texture=False, **SMALL)
    shape.deformation.data.copy_(draws(*shape.deformation.shape))
    again.begin_with(shape)
    assert torch.equal(again.surface()[0], shape.surface()[0]) and not again.surface()[0].requires_grad
    assert again.surface()[0] is again.surface()[0] and {"sdf", "deformation", "box"} == set(again.riding())
    assert (again.features(x) - shape.features(x)).abs().max() > 1e-6
    with pytest.raises(UserError, match="inherit_texture"):
        DMTet(RNG, radius=1.0, resolution=40, **SMALL | {"hidden": 8}).begin_with(shape)


def test_the_automatic_threshold_is_the_mean_where_something_is():
    class Step(HashGrid):
        def density(self, x):
            return torch.where(x.norm(dim=-1) < 0.4, 30.0, torch.where(x.norm(dim=-1) < 0.8, 2.0, 0.0))

    previous = Step(RNG, radius=1.0, start_level=4, **SMALL)
    shape = DMTet(RNG, radius=1.0, resolution=40, inherit_texture=False, **SMALL)
    shape.begin_with(previous)
    assert shape.surface()[0].norm(dim=-1).mean().item() == pytest.approx(0.4, abs=0.03)


def test_small_parts_and_small_holes_are_dropped():
    def three(x):
        ball, hole, crumb = x.norm(dim=-1) - 0.4, 0.1 - x.norm(dim=-1), (x - 0.7).norm(dim=-1) - 0.12
        return torch.minimum(torch.maximum(ball, hole), crumb)

    class Solid(SDF):
        def distance(self, x):
            return three(x)

    for drop, parts in ((0.0, 3), (0.1, 1)):
        shape = DMTet(RNG, radius=1.0, resolution=48, drop=drop, textured=False)
        shape.begin_with(Solid(RNG, radius=1.0, **SMALL))
        assert mesh(*shape.surface()).body_count == parts


def test_densities_are_those_of_the_papers():
    f, s = draws(100) - 0.5, torch.tensor([20.0], dtype=torch.float64)
    laplace = torch.distributions.Laplace(0.0, 1 / 20.0)
    torch.testing.assert_close(volsdf(f, s), 20 * laplace.cdf(-f))
    torch.testing.assert_close(volsdf(f, s * 10), volsdf(f, s * 4))  # no sharper than 80
    step = 1e-6
    before, after = torch.sigmoid(s * f), torch.sigmoid(s * (f - step))
    torch.testing.assert_close(neus(f, s), (before - after) / before / step, rtol=1e-4, atol=1e-6)
    assert SDF(RNG, **SMALL).sharpness().item() == pytest.approx(exp(3))
    ball = SDF(RNG, sphere=0.5, density="volsdf", **SMALL)
    x = torch.tensor([[0.5, 0, 0], [0, 0.4, 0]])
    torch.testing.assert_close(ball.density(x), exp(3) * torch.tensor([0.5, 1 - 0.5 * exp(-0.1 * exp(3))]),
                               rtol=2e-3, atol=0)


def test_sizes_of_textmesh_are_the_published_ones():
    shape = SDF(RNG)
    assert sum(p.numel() for p in shape.parameters()) == 12_201_041 - 448
    for tau, step in ((0, 0.026), (6000, 0.00195)):
        shape.at(tau)
        assert shape.difference == pytest.approx(step, rel=0.01)


@pytest.mark.parametrize("normal", ["finite_difference", "analytic"])
def test_normals_are_the_slope_of_the_distance(normal):
    shape = SDF(RNG, radius=1.0, normal=normal, normal_step=1e-3, start_level=4, **SMALL)
    x = draws(60, 3).float() * 2 - 1
    values = shape.evaluate(x, True)
    assert (values.normals * x / x.norm(dim=-1, keepdim=True)).sum(-1).min() > 0.999
    assert eikonal(values.slope) < 1e-4
    shape.encoding.table.data.mul_(3e3)
    some = torch.arange(60) % 2 == 0
    density, found = shape.probe(x, True)
    found = found(some)
    torch.testing.assert_close(density, shape.density(x))
    torch.testing.assert_close(found.density, shape.density(x[some]))
    steps = 5e-4 * torch.eye(3)
    slope = torch.stack([shape.distance(x[some] + e) - shape.distance(x[some] - e) for e in steps], -1) / 1e-3
    assert (found.slope - slope).norm(dim=-1).median() < 0.03 * slope.norm(dim=-1).median()
    torch.testing.assert_close(found.normals, torch.nn.functional.normalize(found.slope, dim=-1))
    loss = found.slope.square().sum() + found.density.sum()
    grads = torch.autograd.grad(loss, [shape.encoding.table, *shape.sdf_network.parameters()])
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


def test_a_mesh_file_is_fitted_the_same_way_each_time(tmp_path):
    trimesh.creation.box((2, 4, 8)).export(tmp_path / "box.ply")
    keys = dict(radius=1.0, fit=str(tmp_path / "box.ply"), fit_size=0.6, fit_steps=80, start_level=4, **SMALL)
    one, two = SDF(RNG, **keys), SDF(RNG, **keys)
    for shape in (one, two):
        shape.begin()
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(one.parameters(), two.parameters()))
    x = draws(400, 3).float() * 1.6 - 0.8
    q = x.abs() - torch.tensor([0.15, 0.3, 0.6])
    error = one.distance(x) - (q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0))
    assert error.abs().mean() < 0.02 < (x.norm(dim=-1) - 0.5 - one.distance(x)).abs().mean()


@pytest.mark.parametrize("density", ["neus", "volsdf"])
def test_a_rendered_sphere_has_its_silhouette_and_depth(density):
    shape = SDF(RNG, radius=1.0, sphere=0.5, density=density, variance=0.43, start_level=4, **SMALL)
    views = orbit(torch.tensor([0.3]), torch.tensor([0.2]), torch.tensor([2.5]), torch.tensor([0.7]), (33, 33))
    image = Volume(samples=256)(shape, lambda features, *_: features, torch.ones_like, views)
    origins, directions = views.rays()
    along = -(origins * directions).sum(-1)
    missed = (origins.square().sum(-1) - along.square()).sqrt()[0]  # by which a ray misses the centre
    opacity = image.opacity[0, ..., 0].detach()
    assert opacity[missed < 0.42].min() > 0.97 and opacity[missed > 0.58].max() < 0.05
    entry = along[0] - (0.25 - missed.square()).clamp(min=0).sqrt()
    middle = missed < 0.25
    assert (image.depth[0, ..., 0].detach() / opacity - entry)[middle].abs().max() < 0.04
    facing = (image.normal[0] * -directions[0]).sum(-1)[missed == missed.min()]
    assert facing.min() > 0.99


def test_every_number_of_a_distance_and_of_a_lattice_gets_a_gradient_inside_theta():
    keys = SMALL | {"radius": 1.0}
    scene = Scene(SDF(RNG, start_level=4, **keys), Diffuse(), NeuralEnvironment(RNG), Volume(samples=64))
    views = orbit(torch.tensor([0.3]), torch.tensor([0.2]), torch.tensor([2.5]), torch.tensor([0.7]), (12, 12))
    image = scene.load(scene.theta(), 0).render(views, 0, RNG)
    (image.rgb.sum() + image.normal.square().sum() + eikonal(image.samples.normals)).backward()
    shape = DMTet(RNG, resolution=16, **keys)
    lattice_scene = Scene(shape, Diffuse(), Solid(RNG), Volume())
    vertices, _ = lattice_scene.load(lattice_scene.theta(), 0).shape.surface()
    (vertices.square().sum() + shape.features(vertices.detach()).square().sum()).backward()
    for found in (scene, lattice_scene):
        trained = [entry for entry in found.layout.entries if entry.group]
        assert all(found.grad[entry.span].any() for entry in trained) and found.grad.isfinite().all()
    assert {entry.name for entry in lattice_scene.layout.entries if not entry.group} == {"geometry.box"}


def test_losses_equal_loops_over_edges_and_neighbours():
    vertices, faces = sphere(1)
    vertices = (vertices + 0.1 * draws(*vertices.shape)).requires_grad_()
    found = mesh(vertices, faces)
    normals = vertex_normals(vertices, faces)
    pairs = torch.tensor(found.edges_unique)
    consistency = torch.stack([1 - normals[a] @ normals[b] for a, b in pairs]).mean()
    torch.testing.assert_close(normal_consistency(vertices, faces), consistency)
    rows = [(len(near) * vertices[i] - vertices[near].sum(0)).norm() for i, near in enumerate(found.vertex_neighbors)]
    torch.testing.assert_close(laplacian(vertices, faces), torch.stack(rows).mean())
    for loss in (normal_consistency, laplacian):
        grad, = torch.autograd.grad(loss(vertices, faces), vertices)
        for index in (0, 20, 77):
            quotient = differences(lambda: loss(vertices, faces), vertices, index)
            assert grad.view(-1)[index].item() == pytest.approx(quotient, rel=1e-5, abs=1e-9)


def test_losses_are_small_on_a_regular_sphere_and_grow_with_noise():
    vertices, faces = sphere(4)
    assert (vertex_normals(vertices, faces) - vertices).norm(dim=-1).max() < 0.01
    rough = vertices + 0.05 * draws(*vertices.shape)
    for loss in (normal_consistency, laplacian):
        assert 0 < loss(vertices, faces) < 0.03 and loss(rough, faces) > 5 * loss(vertices, faces)


def test_flat_and_vanishing_faces_have_finite_gradients():
    vertices, faces = sphere(1)
    vertices[faces[0]] = vertices[faces[0, 0]].clone()
    vertices.requires_grad_()
    (normal_consistency(vertices, faces) + laplacian(vertices, faces)).backward()
    assert vertices.grad.isfinite().all()


def test_the_eikonal_penalty_is_zero_for_a_distance_and_else_known():
    unit = torch.nn.functional.normalize(draws(50, 3) - 0.5, dim=-1)
    assert eikonal(unit) < 1e-12 and eikonal(3 * unit).item() == pytest.approx(4)
