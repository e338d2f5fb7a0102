"""The rasteriser sees what rays see, and its gradient is that of the image it makes, silhouettes included."""

from math import pi

import pytest
import torch
import trimesh
from torch import Tensor
from torch.nn.functional import grid_sample

from mpiprop.core.errors import RunError
from mpiprop.render.raster import antialias, clip, interpolate, neighbours, rasterize, sample_texture
from mpiprop.views.cameras import Views, orbit, turntable


def sphere(subdivisions: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return torch.tensor(mesh.vertices, dtype=dtype), torch.tensor(mesh.faces)


def on_screen(xy: Tensor, size: tuple[int, int], depth: float = 0.0, w: Tensor | float = 1.0) -> Tensor:
    """Clip positions [1, V, 4] of points given in pixels, row 0 the top."""
    H, W = size
    x, y = 2 * xy[:, 0] / W - 1, 1 - 2 * xy[:, 1] / H
    points = torch.stack([x, y, torch.full_like(x, depth), torch.ones_like(x)], -1)
    return (points * torch.as_tensor(w).view(-1, 1))[None]


def picture(positions: Tensor, faces: Tensor, size: tuple[int, int], attributes: Tensor | None = None) -> Tensor:
    """The antialiased image of attributes [1, V, C], or of coverage."""
    fragments = rasterize(positions, faces, size)
    covered = (fragments.face >= 0)[..., None].to(positions.dtype)
    colour = covered if attributes is None else interpolate(attributes, faces, fragments)
    return antialias(colour, fragments, positions, faces, neighbours(faces))


def nearest_by_rays(views: Views, vertices: Tensor, faces: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """Face [B, H, W] (-1: none) and hit position of every ray by Moeller and Trumbore's test of every triangle."""
    origins, directions = views.rays()
    a, b, c = vertices[faces].unbind(1)
    across = torch.linalg.cross(directions[..., None, :], (c - a).expand(*directions.shape[:3], -1, -1))
    det = ((b - a) * across).sum(-1)
    away = origins[..., None, :] - a
    u = (away * across).sum(-1) / det
    other = torch.linalg.cross(away, (b - a).expand_as(away))
    v, t = (directions[..., None, :] * other).sum(-1) / det, ((c - a) * other).sum(-1) / det
    look = -(directions[..., None, :] * views.c2w[:, None, None, None, :3, 2]).sum(-1)
    t = torch.where((u >= 0) & (v >= 0) & (u + v <= 1) & (t * look >= near), t, torch.inf)
    t, face = t.min(-1)
    return torch.where(t.isfinite(), face, -1), origins + t[..., None] * directions


def exact(views: Views) -> Views:
    return Views(*(each.double() if isinstance(each, Tensor) else each for each in vars(views).values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_image_is_that_of_a_loop_over_pixels_and_triangles(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    H, W = size = (14, 19)
    screen = torch.rand(2, 18, 2, generator=rng, dtype=dtype) * torch.tensor([W + 8.0, H + 8.0]) - 4
    w, z = torch.rand(2, 2, 18, generator=rng, dtype=dtype) + 0.5
    positions = torch.cat([on_screen(each, size, w=each_w) for each, each_w in zip(screen, w)])
    positions[..., 2] = (2 * z - 2) * w
    faces = torch.arange(18).view(6, 3)
    fragments = rasterize(positions, faces, size)
    screen, w, z = screen.tolist(), w.tolist(), (positions[..., 2] / positions[..., 3]).tolist()
    for view in range(2):
        for row in range(H):
            for column in range(W):
                hits = []
                for face in range(6):
                    (ax, ay), (bx, by), (cx, cy) = corners = screen[view][3 * face:3 * face + 3]
                    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
                    parts = []
                    for k in range(3):
                        (px, py), (qx, qy) = corners[(k + 1) % 3], corners[(k + 2) % 3]
                        parts.append(((qx - px) * (row + 0.5 - py) - (qy - py) * (column + 0.5 - px)) / area)
                    depth = sum(part * each for part, each in zip(parts, z[view][3 * face:]))
                    if min(parts) >= 0 and abs(depth) <= 1:
                        weights = [part / each for part, each in zip(parts, w[view][3 * face:])]
                        hits.append((depth, face, [each / sum(weights) for each in weights]))
                depth, face, weights = min(hits, default=(1.0, -1, [0.0] * 3))
                assert fragments.face[view, row, column] == face
                assert fragments.depth[view, row, column].item() == pytest.approx(depth, abs=1e-6)
                assert fragments.barycentric[view, row, column].tolist() == pytest.approx(weights, abs=1e-4)


def test_a_vertex_is_seen_by_the_pixel_whose_ray_passes_through_it() -> None:
    views = exact(orbit(torch.tensor([0.3, 2.0, -1.1]), 0.5, 2.5, 0.7, (12, 17)))
    origins, directions = views.rays()
    for row, column in ((0, 0), (3, 14), (11, 16), (6, 8)):
        along = torch.tensor([0.7, 2.0, 4.0], dtype=torch.float64)[:, None]
        x, y, _, w = clip(views, origins[:, row, column, None] + along * directions[:, row, column, None]).unbind(-1)
        assert torch.allclose((x / w + 1) / 2 * 17, torch.tensor(column + 0.5, dtype=torch.float64))
        assert torch.allclose((1 - y / w) / 2 * 12, torch.tensor(row + 0.5, dtype=torch.float64))
    ahead = origins[:, :1, 0] - views.c2w[:, None, :3, 2] * torch.tensor([[0.2], [9.0]])
    near, far = clip(views, ahead, 0.2, 9.0).unbind(1)
    assert torch.allclose(near[:, 2] / near[:, 3], -torch.ones(3).double())
    assert torch.allclose(far[:, 2] / far[:, 3], torch.ones(3).double())


@pytest.mark.parametrize("distance", [3.0, 0.55])  # from without; among faces, many in part behind the camera
def test_pixels_see_what_rays_hit(distance: float) -> None:
    vertices, faces = sphere(1)
    vertices = torch.cat([vertices, 0.5 * vertices + torch.tensor([0.4, 0.2, 0.1])])
    faces = torch.cat([faces, faces + len(vertices) // 2])
    views = exact(orbit(torch.tensor([0.1, 1.5, 3.0]), torch.tensor([0.2, -0.6, 1.0]), distance, 1.2, (24, 30)))
    fragments = rasterize(clip(views, vertices, near=0.05), faces, views.size)
    face, hit = nearest_by_rays(views, vertices, faces, near=0.05)
    assert (fragments.face != face).sum() <= 2 and (face >= 0).any(-1).any(-1).all()  # ties of rounding
    same = (fragments.face == face) & (face >= 0)
    assert torch.allclose(interpolate(vertices[None], faces, fragments)[same], hit[same], atol=1e-6)


def test_a_wall_that_passes_the_camera_is_cut_at_the_near_plane() -> None:
    """The floor is seen below the horizon as far as the far plane lets, from straight under the camera on."""
    views = exact(orbit(0.0, 0.0, 1.0, pi / 2, (32, 32)))
    floor = torch.tensor([[-50.0, -50, -0.5], [50, -50, -0.5], [50, 50, -0.5], [-50, 50, -0.5]]).double()
    fragments = rasterize(clip(views, floor, far=1000.0), torch.tensor([[0, 1, 2], [0, 2, 3]]), views.size)
    seen = fragments.face >= 0
    assert not seen[0, :16].any() and seen[0, 17:].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_on_shared_edges_belong_to_one_face(dtype: torch.dtype) -> None:
    """A lattice of faces turned at random, in perspective, and flat with edges and corners exactly on pixel centres."""
    rng = torch.Generator().manual_seed(0)
    n, size = 5, (32, 32)
    lattice = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy"), -1).view(-1, 2)
    corner = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).view(-1, 1)
    faces = torch.cat([corner + torch.tensor([0, 1, n + 1]), corner + torch.tensor([0, n + 1, n])])
    turned = torch.rand(len(faces), generator=rng) < 0.5
    faces = torch.where(turned[:, None], faces.flip(1), faces)
    for wobble in (0, 0.4):
        moved = lattice + wobble * (torch.rand(len(lattice), 2, generator=rng) - 0.5) * ((lattice % (n - 1)) > 0)
        w = 1 + wobble * torch.rand(len(lattice), generator=rng, dtype=dtype)
        positions = on_screen((4 * moved + 2.5).to(dtype), size, w=w)
        alone = [rasterize(positions, face[None], size).face[0] >= 0 for face in faces]
        times = torch.stack(alone).sum(0)
        assert (times[3:18, 3:18] == 1).all() and times.max() == 1
        assert torch.equal(rasterize(positions, faces, size).face[0] >= 0, times == 1)
        assert wobble or times.sum() == 16 ** 2


def test_a_closed_surface_has_no_holes() -> None:
    vertices, faces = sphere(5, torch.float32)
    views = turntable(3, 0.4, 3.0, 0.8, (128, 128))
    seen = rasterize(clip(views, vertices), faces, views.size).face >= 0
    origins, directions = views.rays()
    passes = torch.linalg.cross(origins, directions).norm(dim=-1)
    assert seen[passes < 0.999].all() and not seen[passes > 1].any()


def test_views_of_a_batch_do_not_touch_and_bits_repeat() -> None:
    vertices, faces = sphere(3, torch.float32)
    views = turntable(3, 0.4, 3.0, 0.8, (40, 32))
    together = picture(clip(views, vertices), faces, views.size, vertices[None])
    assert torch.equal(together, picture(clip(views, vertices), faces, views.size, vertices[None]))
    for i in range(3):
        positions = clip(views[i:i + 1], vertices)
        assert torch.equal(picture(positions, faces, views.size, vertices[None]), together[i:i + 1])


def test_attributes_and_texture_are_interpolated_with_their_gradients() -> None:
    """In perspective and in float64: numerical derivatives of everything at once, while coverage stays."""
    rng = torch.Generator().manual_seed(3)
    xy = torch.tensor([[0.6, 0.3], [5.3, 1.1], [1.4, 4.4], [5.8, 5.2]], dtype=torch.float64)
    positions = on_screen(xy, (6, 6), w=torch.tensor([1, 2, 1.5, 0.7])).requires_grad_()
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    uv = torch.rand(1, 4, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    texture = torch.rand(3, 4, 2, generator=rng, dtype=torch.float64, requires_grad=True)

    def seen(positions: Tensor, uv: Tensor, texture: Tensor) -> Tensor:
        fragments = rasterize(positions, faces, (6, 6))
        return sample_texture(texture, interpolate(uv, faces, fragments))[fragments.face >= 0]

    assert torch.autograd.gradcheck(seen, (positions, uv, texture), fast_mode=True)


def test_texture_is_read_as_pictures_are() -> None:
    rng = torch.Generator().manual_seed(4)
    texture, uv = torch.rand(5, 7, 3, generator=rng), torch.rand(50, 2, generator=rng)
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], -1)[None, None]
    reference = grid_sample(texture.permute(2, 0, 1)[None], grid, padding_mode="border", align_corners=False)[0, :, 0].T
    assert torch.allclose(sample_texture(texture, uv), reference, atol=1e-6)
    assert torch.allclose(sample_texture(texture, torch.tensor([0.0, 1.0])), texture[0, 0])
    assert torch.allclose(sample_texture(texture[:1, :1], uv), texture[0, 0])


def test_neighbours_are_those_of_a_mesh_library() -> None:
    _, faces = sphere(2)
    across = neighbours(faces[:-3])
    pairs = {(face, other) for face in range(len(across)) for other in across[face].tolist() if other >= 0}
    expected = trimesh.Trimesh(faces=faces[:-3].numpy(), vertices=sphere(2)[0].numpy(), process=False).face_adjacency
    assert pairs == {tuple(pair) for pair in expected.tolist()} | {tuple(pair[::-1]) for pair in expected.tolist()}
    for face, k in ((0, 0), (5, 2)):
        shared = {faces[face, k].item(), faces[face, (k + 1) % 3].item()}
        assert shared <= set(faces[across[face, k]].tolist())
    assert (neighbours(torch.tensor([[0, 1, 2], [0, 1, 3]])) == -1).all()  # not oriented alike
    assert (neighbours(torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])) == -1).all()  # three at an edge


@pytest.mark.parametrize("corners", [[[2.3, 1.6], [17.2, 5.3], [6.9, 18.4]], [[2.3, 1.6], [6.9, 18.4], [17.2, 5.3]]])
def test_coverage_of_a_moving_triangle_is_its_area(corners: list[list[float]]) -> None:
    """Scaled about a point the area goes with the square, moved it stays: in value and in derivative."""
    H, W = size = (20, 20)
    base = torch.tensor(corners, dtype=torch.float64)
    (ax, ay), (bx, by), (cx, cy) = corners
    area = abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) / 2
    values, derivatives = [], []
    for shift in torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        change = torch.tensor([1.0, 0, 0], dtype=torch.float64, requires_grad=True)  # scale, move
        xy = (base - 9) * change[0] + 9 + shift + change[1:]
        total = picture(on_screen(xy, size), torch.tensor([[0, 1, 2]]), size).sum()
        values.append(total.detach())
        derivatives.append(torch.autograd.grad(total, change)[0])
    assert torch.stack(values).mean() == pytest.approx(area, rel=0.01)
    mean = torch.stack(derivatives).mean(0)
    assert mean[0] == pytest.approx(2 * area, rel=0.05)  # corners are cut
    assert mean[1:].abs().max() < 0.5  # pixels per pixel; each edge alone gives up to 17


def test_gradient_at_silhouettes_is_that_of_the_image() -> None:
    """Central differences of a random projection of the antialiased image of two spheres, one before the other."""
    rng = torch.Generator().manual_seed(5)
    vertices, faces = sphere(1)
    vertices = torch.cat([vertices, 0.5 * vertices + torch.tensor([1.4, 0.3, 0.2])])
    faces = torch.cat([faces, faces + len(vertices) // 2])
    views = exact(orbit(0.2, 0.3, 4.0, 0.8, (20, 22)))
    weights = torch.randn(1, 20, 22, 3, generator=rng, dtype=torch.float64)
    colours = torch.rand(1, len(vertices), 3, generator=rng, dtype=torch.float64)

    def projection(vertices: Tensor) -> Tensor:
        return (picture(clip(views, vertices), faces, views.size, colours) * weights).sum()

    vertices.requires_grad_()
    gradient, = torch.autograd.grad(projection(vertices), vertices)
    with torch.no_grad():
        for _ in range(10):
            way = torch.randn(vertices.shape, generator=rng, dtype=torch.float64) * 1e-7
            numerical = projection(vertices + way) - projection(vertices - way)
            assert numerical.item() == pytest.approx(2 * (gradient * way).sum().item(), rel=1e-4)


@pytest.mark.parametrize("subdivisions", [2, 4, 6])  # edges of 9, 2.2 and 0.6 pixels
def test_silhouettes_are_found_whatever_the_size_of_faces(subdivisions: int) -> None:
    """Coverage is that of 16 x 16 as many pixels, and grows with the sphere as the area of its disc does."""
    vertices, faces = sphere(subdivisions)
    views = exact(orbit(0.3, 0.4, 4.0, 0.7, (48, 48)))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    soft = picture(clip(views, scale * vertices), faces, views.size)
    fine = rasterize(clip(views, vertices), faces, (48 * 16, 48 * 16)).face >= 0
    true = fine.double().view(48, 16, 48, 16).mean((1, 3))
    hard = rasterize(clip(views, vertices), faces, views.size).face[0] >= 0
    edge = (true > 0) & (true < 1)
    error, without = ((each - true).abs()[edge].mean() for each in (soft[0, ..., 0], hard.double()))
    assert error < 0.06 and error < without / 3
    slope, = torch.autograd.grad(soft.sum(), scale)
    assert slope == pytest.approx(2 * true.sum().item() * 16 / 15, rel=0.06)  # r^2 / (d^2 - r^2): 2 d^2 / (d^2 - r^2)


def test_hidden_edges_are_not_seen() -> None:
    size = (16, 16)
    front = on_screen(torch.tensor([[-30.0, -20], [50, -20], [8, 60]]), size, depth=-0.5)
    behind = on_screen(torch.tensor([[3.2, 3.1], [13.3, 4.4], [6.1, 12.7]]), size, depth=0.5)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    colours = torch.tensor([3 * [1.0], 3 * [0.25]]).view(1, 6, 1)
    assert torch.allclose(picture(torch.cat([front, behind], 1), faces, size, colours), torch.ones(1, *size, 1))
    blended = picture(torch.cat([behind, front], 1) * torch.tensor([1, 1, -1, 1]), faces, size, colours.flip(1))
    assert ((blended > 0.26) & (blended < 0.99)).any() and blended.min() > 0.249 and blended.max() < 1.001


def test_a_speck_smaller_than_a_pixel_blends_no_more_than_all_of_it() -> None:
    speck = on_screen(torch.tensor([[7.4, 7.3], [7.7, 7.4], [7.5, 7.8]]), (16, 16)).requires_grad_()
    image = picture(speck, torch.tensor([[0, 1, 2]]), (16, 16))
    assert -1e-6 < image.min() and image.max() < 0.5
    assert torch.autograd.grad(image.sum(), speck)[0].isfinite().all()


def test_nothing_to_see_is_an_empty_image() -> None:
    vertices, faces = sphere(1, torch.float32)
    views = orbit(0.0, 0.0, 3.0, 0.8, (8, 8))
    degenerate = torch.zeros(1, 3, dtype=torch.long)
    away = vertices + 10 * views.c2w[0, :3, 2]  # behind the camera
    for positions, faces in ((away, faces), (vertices, faces[:0]), (vertices, degenerate)):
        positions = clip(views, positions).requires_grad_()
        fragments = rasterize(positions, faces, views.size)
        assert (fragments.face == -1).all() and (fragments.depth == 1).all()
        image = picture(positions, faces, views.size, vertices[None])
        assert (image == 0).all() and (torch.autograd.grad(image.sum(), positions)[0] == 0).all()


@pytest.mark.gpu
def test_a_gpu_makes_the_same_image() -> None:
    vertices, faces = sphere(4, torch.float32)
    views = turntable(2, 0.4, 3.0, 0.8, (96, 96))
    positions = clip(views, vertices)
    image = picture(positions, faces, views.size, vertices[None])
    there = picture(positions.cuda(), faces.cuda(), views.size, vertices[None].cuda())
    assert torch.allclose(image, there.cpu(), atol=1e-5)


@pytest.mark.gpu
def test_nvdiffrast_makes_the_same_image() -> None:
    pytest.importorskip("nvdiffrast.torch")
    from mpiprop.render import nvdiffrast

    vertices, faces = (each.cuda() for each in sphere(3, torch.float32))
    positions = clip(turntable(2, 0.4, 3.0, 0.8, (96, 96)).to("cuda"), vertices)
    ours, theirs = rasterize(positions, faces, (96, 96)), nvdiffrast.rasterize(positions, faces, (96, 96))
    same = ours.face == theirs.face
    assert same.float().mean() > 0.99  # its corners are rounded to parts of a pixel
    assert torch.allclose(ours.barycentric[same], theirs.barycentric[same], atol=1e-3)
    image = antialias(interpolate(vertices[None], faces, ours), ours, positions, faces, neighbours(faces))
    other = nvdiffrast.interpolate(vertices[None], faces, theirs)
    other = nvdiffrast.antialias(other, theirs, positions, faces, neighbours(faces))
    assert (image - other).abs().mean() < 1e-2


def test_nvdiffrast_is_asked_for_only_where_it_can_be() -> None:
    from mpiprop.render import nvdiffrast

    with pytest.raises(RunError, match="backend: torch"):
        nvdiffrast.rasterize(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), (4, 4))
