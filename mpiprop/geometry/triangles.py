"""Closed triangle meshes as tensors: their files, normals, and the exact signed distance to them.

The sign follows Baerentzen and Aanaes 2005 (angle-weighted pseudonormals). Letters: N points, V vertices, F faces, G
groups of near faces. Faces run counterclockwise seen from outside.
"""
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, uniform

GROUP = 16  # faces that are looked at together
CHUNK = 256  # points at a time, whose pairs with faces fit a cache
TINY = 1e-300  # keeps faces without an area from dividing zero by zero
WORLD_FRAME = (".ply", ".stl")  # formats without a convention of y being up and the front +z


def load(path: str, size: float) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] and faces [F, 3] of a closed mesh file, centred in the world frame (z up, front +x), its longest
    side 2 `size` world units. Raises UserError where there is no closed mesh."""
    import trimesh

    try:
        raw: Any = trimesh.load(path, force="mesh")
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read as a mesh: {error}") from None
    mesh = trimesh.Trimesh(raw.vertices, raw.faces, validate=True)  # without UVs, so that their seams close
    if not len(mesh.faces) or not (mesh.is_watertight and mesh.is_winding_consistent):
        raise UserError(f"{path}: the mesh is not closed, so it has no inside; close its holes first")
    if mesh.volume < 0:
        mesh.invert()
    vertices = torch.tensor(mesh.vertices, dtype=torch.float64)
    if not path.lower().endswith(WORLD_FRAME):
        vertices = vertices[:, [2, 0, 1]]
    low, high = vertices.aminmax(dim=0)
    scaled = (vertices - (low + high) / 2) * (2 * size / (high - low).max())
    return scaled.float(), torch.tensor(mesh.faces, dtype=torch.int64)


def face_areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """Outward normals [F, 3] as long as twice the area of each face."""
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def scattered(vertices: Tensor, faces: Tensor, n: int, rng: Streams) -> Tensor:
    """n points [n, 3], uniform on the surface of a mesh, drawn from the streams "face" and "share"."""
    area = face_areas(vertices, faces).norm(dim=-1)
    face = torch.multinomial(area, n, replacement=True, generator=rng("face"))
    share = -uniform(rng("share"), n, 3, lo=1e-6).log()
    share /= share.sum(1, keepdim=True)
    return (share[:, :, None] * vertices[faces[face]]).sum(1)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Outward unit normals [V, 3], the mean of the faces around a vertex by area; +z where they cancel. Differentiable."""
    areas = face_areas(vertices, faces)
    total = torch.zeros_like(vertices).index_add(0, faces.T.reshape(-1), areas.repeat(3, 1))
    cancelled = (total.square().sum(-1, keepdim=True) < 1e-30).to(total) * total.new_tensor([0, 0, 1])
    return normalize(total + cancelled, dim=-1, eps=1e-20)


@torch.no_grad()
def signed_distance(vertices: Tensor, faces: Tensor, x: Tensor) -> Tensor:
    """The exact distance [N] of points [N, 3] from a closed mesh, negative inside."""
    corners = vertices.double()[faces].permute(1, 2, 0).contiguous()
    near = _nearest(corners, x.double())
    weights, away = _towards(x.T.double(), corners[:, :, near])
    normal = _pseudonormals(vertices.double(), faces)[near, _feature(weights.T)]
    distance = away.norm(dim=0)
    return torch.where((away.T * normal).sum(-1) < 0, -distance, distance).to(x.dtype)


def _nearest(corners: Tensor, x: Tensor) -> Tensor:
    """The face [N] of those with corners [3, 3, F] (corner, axis, face) nearest to points [N, 3]; of equals the first.

    A group of faces, and then a face, is not looked at where its bounding sphere lies farther away than some face."""
    middle = corners.mean(0)
    size = (corners - middle).square().sum(1).amax(0).sqrt()
    group = _morton(middle.T)
    group = torch.cat([group, group[-1:].expand(-len(group) % GROUP)]).view(-1, GROUP)
    centre = middle[:, group].mean(-1).T
    reach = ((middle[:, group] - centre.T[:, :, None]).square().sum(0).sqrt() + size[group]).amax(1)
    found = []
    for part in x.split(CHUNK):
        apart = torch.cdist(part, centre, compute_mode="donot_use_mm_for_euclid_dist")
        likely = group[apart.argmin(1)]
        which = _squared(part.T[:, :, None], middle[:, likely]).argmin(1, keepdim=True)
        first = likely.gather(1, which)[:, 0]
        limit = _towards(part.T, corners[:, :, first])[1].norm(dim=0) * (1 + 1e-12) + TINY
        point, opened = (apart <= limit[:, None] + reach).nonzero().unbind(1)
        face = group[opened]
        row, column = (_squared(part.T[:, point, None], middle[:, face])
                       <= (limit[point, None] + size[face]).square()).nonzero().unbind(1)
        point, face = point[row], face[row, column]
        squared = _towards(part.T[:, point], corners[:, :, face])[1].square().sum(0)
        least = torch.full_like(limit, torch.inf).scatter_reduce(0, point, squared, "amin")
        face = face.where(squared <= least[point], corners.shape[2])
        found.append(torch.full_like(first, corners.shape[2]).scatter_reduce(0, point, face, "amin"))
    return torch.cat(found)


def _morton(x: Tensor) -> Tensor:
    """The order [F] of points [F, 3] along a curve that keeps near ones together."""
    low, high = x.aminmax(dim=0)
    cell = ((x - low) / (high - low).max() * 1023).long()
    bits = torch.arange(10, device=x.device)
    code = ((cell[:, :, None] >> bits & 1) << (3 * bits + torch.arange(3, device=x.device)[:, None])).sum((1, 2))
    return code.argsort(stable=True)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(0)


def _towards(x: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [3, N] of the corners [3, 3, N] in the point of each face nearest to x [3, N], exactly zero on borders,
    and what leads from there to x [3, N] (Ericson 2004, section 5.1.5)."""
    a, b, c = corners
    ab, ac, ax = b - a, c - a, x - a
    bb, bc, cc = _dot(ab, ab), _dot(ab, ac), _dot(ac, ac)
    xb, xc = _dot(ab, ax), _dot(ac, ax)
    area = bb * cc - bc * bc
    v, w = (cc * xb - bc * xc) / area, (bb * xc - bc * xb) / area
    best = torch.where((v > 0) & (w > 0) & (v + w < 1), -torch.inf, torch.inf)
    weights = torch.stack([1 - v - w, v, w])
    zero = torch.zeros_like(v)
    on_ab, on_ac = (xb / (bb + TINY)).clamp(0, 1), (xc / (cc + TINY)).clamp(0, 1)
    on_bc = ((xc - xb + bb - bc) / (bb + cc - 2 * bc + TINY)).clamp(0, 1)
    for border in (1 - on_ab, on_ab, zero), (1 - on_ac, zero, on_ac), (zero, 1 - on_bc, on_bc):
        _, p, q = border
        squared = p * (p * bb - 2 * xb) + q * (q * cc - 2 * xc) + 2 * p * q * bc
        weights = torch.where(squared < best, torch.stack(border), weights)
        best = torch.minimum(best, squared)
    return weights, ax - weights[1] * ab - weights[2] * ac


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _feature(weights: Tensor) -> Tensor:
    """Which of a face's seven features [N] weights [N, 3] lie on: 0 the inside, 1..3 the border opposite to a corner,
    4..6 a corner."""
    on = (weights == 0).sum(-1)
    return torch.where(on == 0, 0, torch.where(on == 1, 1 + weights.argmin(-1), 4 + weights.argmax(-1)))


def _pseudonormals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Normals [F, 7, 3] of the features of each face: their faces' unit normals, at corners weighted by angle."""
    unit = normalize(face_areas(vertices, faces), dim=-1)
    a, b = faces[:, [1, 2, 0]].T, faces[:, [2, 0, 1]].T  # ends of the border opposite to each corner, [3, F]
    _, border = torch.unique(torch.minimum(a, b) * len(vertices) + torch.maximum(a, b), return_inverse=True)
    borders = unit.new_zeros(border.max() + 1, 3).index_add(0, border.reshape(-1), unit.repeat(3, 1))
    one, two = vertices[a] - vertices[faces.T], vertices[b] - vertices[faces.T]
    angle = torch.atan2(torch.linalg.cross(one, two).norm(dim=-1), (one * two).sum(-1))
    total = torch.zeros_like(vertices).index_add(0, faces.T.reshape(-1), (angle[..., None] * unit).view(-1, 3))
    return torch.cat([unit[:, None], borders[border.T], total[faces]], 1)
