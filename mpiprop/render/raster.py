"""Rasterisation of meshes with gradients for positions and attributes (Laine et al., arXiv 2011.03277, section 3).

Letters: B views, V vertices, F faces, H x W pixels, S covered pixels, N = B F faces of all views, M crossings of
silhouette edges with lines through pixel centres. Clip positions (x, y, z, w) are OpenGL's: x to the right and y up in
[-w, w], z from -w at the near to w at the far plane; row 0 of an image is its top, pixel centres lie at i + 0.5.
Coverage is decided by homogeneous edge functions (Olano and Greer 1997), which need no clipping: a face that reaches
behind the camera is cut at the near plane, pixel by pixel. Nothing is culled. All geometry is in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mpiprop.views.cameras import Views

CANDIDATES = 1 << 18  # (face, pixel) pairs tested at a time
SIDES = (1, 2, 3, *(side << k for k in range(14) for side in (4, 6)))  # of the boxes tested, in pixels
FACE_BITS, DEPTHS = 31, (1 << 32) - 2
SLACK = 1e-9  # pixels: more than boxes are rounded, less than matters
HOPS = 64  # faces between a pixel centre and a silhouette half a pixel away, at most


@dataclass(frozen=True)
class Fragments:
    """What each pixel centre sees of a mesh."""

    face: Int[Tensor, "B H W"]  # int64, -1 where empty
    barycentric: Float[Tensor, "B H W 3"]  # perspective-correct, zero where empty; differentiable in the positions
    depth: Float[Tensor, "B H W"]  # z / w in [-1, 1], 1 where empty; without gradient


def clip(views: Views, vertices: Float[Tensor, "*some V 3"], near: float = 0.1, far: float = 100.0
         ) -> Float[Tensor, "B V 4"]:
    """Clip positions of world positions [V, 3] or [B, V, 3]; near and far in world units along the look."""
    H, W = views.size
    x, y, z = ((vertices - views.c2w[:, None, :3, 3]) @ views.c2w[:, :3, :3]).unbind(-1)
    scale = 1 / torch.tan(views.fovy / 2)[:, None]
    return torch.stack([x * scale * (H / W), y * scale, -((far + near) * z + 2 * far * near) / (far - near), -z], -1)


def rasterize(positions: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], size: tuple[int, int]) -> Fragments:
    """The nearest face at each pixel centre, from clip positions and corners (int64); of equally near
    faces the first. A centre on an edge between two faces belongs to exactly one. Differentiable in the positions."""
    H, W = size
    points = _points(positions, size)
    face, depth = _nearest(points.detach(), faces, size)
    pixel, corners = _covered(face, faces, *positions.shape[:2])
    x, y, w = points[..., (0, 1, 3)].flatten(0, 1).index_select(0, corners.flatten()).view(-1, 3, 3).unbind(-1)
    x, y = x - w * (pixel % W + 0.5)[:, None], y - w * (pixel // W % H + 0.5)[:, None]
    areas = x.roll(-1, 1) * y.roll(-2, 1) - x.roll(-2, 1) * y.roll(-1, 1)
    inner = (areas / areas.sum(1, keepdim=True)).to(positions.dtype)
    barycentric = inner.new_zeros(face.numel(), 3).index_copy(0, pixel, inner)
    return Fragments(face, barycentric.view(*face.shape, 3), depth.to(positions.dtype))


def interpolate(attributes: Float[Tensor, "b V C"], faces: Int[Tensor, "F 3"], fragments: Fragments
                ) -> Float[Tensor, "B H W C"]:
    """Attributes of what the pixels see, zero where empty, from those of the vertices (b = B, or 1 for all views)."""
    pixel, corners = _covered(fragments.face, faces, *attributes.shape[:2])
    values = attributes.flatten(0, 1).index_select(0, corners.flatten()).view(-1, 3, attributes.shape[-1])
    weights = fragments.barycentric.flatten(0, 2).index_select(0, pixel)
    mixed = torch.einsum("sk,skc->sc", weights, values)
    image = mixed.new_zeros(fragments.face.numel(), mixed.shape[-1]).index_copy(0, pixel, mixed)
    return image.view(*fragments.face.shape, -1)


def sample_texture(texture: Float[Tensor, "H W C"], uv: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N C"]:
    """Colours of a texture at uv, bilinear between texel centres and clamped at the border;
    (0, 0) is the lower left corner of the picture, whose row 0 is its top."""
    H, W, C = texture.shape
    x, y = (uv[..., 0] * W - 0.5).clamp(0, W - 1), ((1 - uv[..., 1]) * H - 0.5).clamp(0, H - 1)
    left, top = x.detach().long().clamp(max=max(W - 2, 0)), y.detach().long().clamp(max=max(H - 2, 0))
    x, y = (x - left)[..., None], (y - top)[..., None]

    def texel(row: Tensor, column: Tensor) -> Tensor:
        return texture.view(-1, C).index_select(0, (row * W + column).flatten()).view(*row.shape, C)

    right, below = (left + 1).clamp(max=W - 1), (top + 1).clamp(max=H - 1)
    return torch.lerp(torch.lerp(texel(top, left), texel(top, right), x),
                      torch.lerp(texel(below, left), texel(below, right), x), y)


def neighbours(faces: Int[Tensor, "F 3"]) -> Int[Tensor, "F 3"]:
    """The face across the edge from corner k to corner k + 1; -1 at borders and where more than two faces meet
    or two that are not oriented alike."""
    start, end = faces, faces.roll(-1, 1)
    edge, order = (torch.minimum(start, end) << 31 | torch.maximum(start, end)).flatten().sort(stable=True)
    rising = (start < end).flatten()[order]
    fresh = torch.ones(len(edge) + 1, dtype=torch.bool, device=faces.device)
    fresh[1:-1] = edge[1:] != edge[:-1]
    pair = (fresh[:-2] & ~fresh[1:-1] & fresh[2:] & (rising[:-1] != rising[1:])).nonzero()[:, 0]
    across = torch.full_like(edge, -1)
    across[order[pair]], across[order[pair + 1]] = order[pair + 1] // 3, order[pair] // 3
    return across.view(-1, 3)


def antialias(colour: Float[Tensor, "B H W C"], fragments: Fragments, positions: Float[Tensor, "B V 4"],
              faces: Int[Tensor, "F 3"], adjacent: Int[Tensor, "F 3"]) -> Float[Tensor, "B H W C"]:
    """The image with pixels blended across visible silhouettes as far as these reach into them, which is
    what gives the positions their gradient there (Laine et al., section 3.4). `adjacent` = neighbours(faces).

    A silhouette edge is one whose faces lie on the same side of it, or a border. Where it crosses the line between two
    pixel centres (of a row, if it is steep; else of a column), it is visible if the surface seen at the inner centre
    leads to it: faces smaller than a pixel are walked over, where section 3.4 sees only the face at the centre. No more
    than all of a pixel is blended. Edges that reach before the near plane are left out."""
    H, W = size = fragments.face.shape[1:]
    points = _points(positions, size)
    with torch.no_grad():
        at = _silhouettes(points, fragments, faces, adjacent)
    inner, outer = at.inner, at.outer
    x, y, _, w = points.flatten(0, 1).index_select(0, at.ends.flatten()).view(2, -1, 4).unbind(-1)
    place = torch.where(at.steep, inner % W, inner // W % H)
    across = torch.where(at.steep, x, y) - w * (place + 0.5)
    along = torch.where(at.steep, y, x) - w * (at.line + 0.5)
    reach = (across[1] * along[0] - across[0] * along[1]) / (w[1] * along[0] - w[0] * along[1])
    excess = reach.abs() - 0.5  # pixels by which the surface ends beyond the border of the inner pixel
    share = excess.abs().to(colour.dtype)
    into, out = torch.where(excess < 0, inner, outer), torch.where(excess < 0, outer, inner)
    total = share.new_zeros(fragments.face.numel()).index_add(0, into, share)
    share = share / total.index_select(0, into).clamp(min=1)
    flat = colour.flatten(0, 2)
    change = (flat.index_select(0, out) - flat.index_select(0, into)) * share[:, None]
    return flat.index_add(0, into, change).view_as(colour)


def _points(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Homogeneous pixel coordinates, z and w [B, V, 4], float64."""
    x, y, z, w = positions.double().unbind(-1)
    return torch.stack([(w + x) * (size[1] / 2), (w - y) * (size[0] / 2), z, w], -1)


def _covered(face: Tensor, faces: Tensor, views: int, vertices: int) -> tuple[Tensor, Tensor]:
    """The pixels [S] that see a face, as indices into B * H * W, and its corners [S, 3] in `views` or 1 times V."""
    pixel = (face >= 0).flatten().nonzero()[:, 0]
    corners = faces.index_select(0, face.flatten().index_select(0, pixel))
    if views > 1:
        corners = corners + (pixel // face[0].numel() * vertices)[:, None]
    return pixel, corners


def _corners(faces: Tensor, views: int, vertices: int) -> Tensor:
    """The corners [3, N] of the faces of all views in B * V vertices."""
    return (faces.T[:, None] + torch.arange(views, device=faces.device)[:, None] * vertices).flatten(1)


def _line(start: Tensor, end: Tensor) -> Tensor:
    """A, B, C [3, ...] of A x + B y + C, whose sign is the side of the edge between homogeneous points [4, ...]. With
    the ends exchanged it is the negative to the last bit: no pixel is in both faces at an edge, or in none."""
    (x0, y0, _, w0), (x1, y1, _, w1) = start, end
    return torch.stack([y0 * w1 - y1 * w0, w0 * x1 - w1 * x0, x0 * y1 - x1 * y0])


def _area(line: Tensor, corner: Tensor) -> Tensor:
    """The determinant [...] of a face: positive where its corners turn from x to y, zero where it is seen edge-on."""
    return line[0] * corner[0] + line[1] * corner[1] + line[2] * corner[3]


def _nearest(points: Tensor, faces: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The nearest face [B, H, W] and its depth: the least of the integers (depth, face) that are offered to a pixel."""
    (B, V), (H, W) = points.shape[:2], size
    columns, corners = points.flatten(0, 1).T.contiguous(), _corners(faces, B, V)
    first, last = _boxes(columns, corners, size)
    seen = ((last >= first).all(0) & (first >= 0).all(0)).nonzero()[:, 0]
    sides = torch.tensor(SIDES, device=faces.device)
    first, box = first[:, seen].long(), sides[torch.bucketize((last - first)[:, seen] + 1, sides)]
    shape, order = (box[0] << 16 | box[1]).sort(stable=True)
    seen, first = seen[order], first[:, order]
    a, b, c = (columns.index_select(1, corner[seen]) for corner in corners)
    lines = torch.stack([_line(b, c), _line(c, a), _line(a, b)], 1)
    area = _area(lines[:, 2], c)
    depth = (lines * torch.stack([a[2], b[2], c[2]])).sum(1) / area  # z / w is linear in the image; not finite edge-on
    lines = torch.cat([lines * area.sign(), depth[:, None]], 1)
    owner = (lines[0, :3] > 0) | (lines[0, :3] == 0) & (lines[1, :3] > 0)
    least = ((~owner).to(lines) * torch.finfo(lines.dtype).tiny)[..., None, None]
    start, face = seen // len(faces) * (H * W), seen % len(faces)

    nearest = torch.full((B * H * W,), torch.iinfo(torch.int64).max, device=faces.device)
    for (width, height), some in _alike(shape):
        column = first[0, some, None] + torch.arange(width, device=faces.device)
        row = first[1, some, None] + torch.arange(height, device=faces.device)
        slope, rise, offset = lines[:, :, some, None]
        value = (rise * (row + 0.5) + offset)[..., None] + (slope * (column + 0.5))[..., None, :]
        inside = (value[0] >= least[0, some]) & (value[1] >= least[1, some]) & (value[2] >= least[2, some])
        inside &= (value[3].abs() <= 1) & (column < W)[:, None] & (row < H)[..., None]
        which, j, i = inside.nonzero().unbind(-1)
        key = ((value[3, which, j, i] + 1) * (DEPTHS / 2)).long() << FACE_BITS | face[some][which]
        pixel = start[some][which] + row[which, j] * W + column[which, i]
        nearest.scatter_reduce_(0, pixel, key, "amin")
    nearest = nearest.view(B, H, W)
    depth = (nearest >> FACE_BITS).double().mul(2 / DEPTHS).sub(1).clamp(max=1)
    found = nearest < torch.iinfo(torch.int64).max
    return torch.where(found, nearest & (1 << FACE_BITS) - 1, -1), depth


def _alike(shape: Tensor) -> Iterator[tuple[tuple[int, int], slice]]:
    """Width and height of the boxes of faces [N] in order, and the run of faces, as many as are tested at a time."""
    kinds, counts = shape.unique_consecutive(return_counts=True)
    first = 0
    for kind, count in torch.stack([kinds, counts], 1).tolist():
        width, height = kind >> 16, kind & 0xFFFF
        step = max(CANDIDATES // (width * height), 1)
        for begin in range(first, first + count, step):
            yield (width, height), slice(begin, min(begin + step, first + count))
        first += count


def _boxes(points: Tensor, corners: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """First and last column and row [2, N] of the pixel centres in the boxes of faces, less what is before the near
    plane; last < first where there are none."""
    front = points[2] + points[3]  # negative before the near plane
    ends = (points[:2] / points[3]).index_select(1, corners.flatten()).view(2, *corners.shape)
    low, high = ends.amin(1), ends.amax(1)
    behind = (front < 0)[corners].sum(0)
    low = low.masked_fill(behind == 3, torch.inf)
    if len(cut := ((behind > 0) & (behind < 3)).nonzero()[:, 0]):
        corner = points[:, corners[:, cut]]
        front = corner[2] + corner[3]
        share = front / (front - front.roll(-1, 0))
        crossing = corner[[0, 1, 3]].lerp(corner[[0, 1, 3]].roll(-1, 1), share)
        ends = torch.cat([ends[:, :, cut], crossing[:2] / crossing[2]], 1)
        valid = torch.cat([front >= 0, (front < 0) != (front < 0).roll(-1, 0)])
        low[:, cut] = ends.masked_fill(~valid, torch.inf).amin(1)
        high[:, cut] = ends.masked_fill(~valid, -torch.inf).amax(1)
    limit = torch.tensor(size[::-1], device=points.device)[:, None] - 1
    first = torch.ceil(low - 0.5 - SLACK).clamp(min=0)
    return first, torch.floor(high - 0.5 + SLACK).minimum(limit)


class _Crossings(NamedTuple):
    """Where silhouette edges cross lines through pixel centres; all [M]."""

    face: Tensor  # of all views, in 0..N - 1
    edge: Tensor  # the corner of `face` where the edge begins
    ends: Tensor  # [2, M] its vertices in B * V
    inner: Tensor  # the pixels in B * H * W before and behind it, as seen from inside the face
    outer: Tensor
    depth: Tensor  # z / w
    line: Tensor  # row or column
    steep: Tensor  # whether the line is a row
    upward: Tensor  # whether outer is right of (below) inner

    def __getitem__(self, some: Tensor) -> "_Crossings":
        return _Crossings(*(field[..., some] for field in self))


def _silhouettes(points: Tensor, fragments: Fragments, faces: Tensor, adjacent: Tensor) -> _Crossings:
    """The crossings of visible silhouettes, which are those that end a surface seen at the inner pixel."""
    B, V = points.shape[:2]
    points, corners = points.flatten(0, 1).T.contiguous(), _corners(faces, B, V)
    a, b, c = (points.index_select(1, corner) for corner in corners)
    facing = _area(_line(a, b), c) > 0
    across = facing.view(B, -1)[:, adjacent.clamp(min=0)].flatten(0, 1)
    ends = (adjacent < 0).repeat(B, 1) | (across != facing[:, None])
    crossings = _crossings(points, corners, facing, ends, fragments.face.shape)
    start = fragments.face.flatten()[crossings.inner]
    behind = fragments.depth.flatten()[crossings.outer] > crossings.depth
    return _led_to(crossings[(start >= 0) & behind], fragments.face, points, corners, facing, ends, adjacent)


def _crossings(points: Tensor, corners: Tensor, facing: Tensor, ends: Tensor,
               shape: tuple[int, int, int]) -> _Crossings:
    """All crossings of the edges `ends` [N, 3] with lines inside the images."""
    B, H, W = shape
    face, edge = ends.nonzero().unbind(-1)
    vertices = torch.stack([corners[edge, face], corners[(edge + 1) % 3, face]])
    whole = (points[2] + points[3] >= 0)[vertices].all(0)
    face, edge, vertices = face[whole], edge[whole], vertices[:, whole]
    x, y, z = (points[:3] / points[3])[:, vertices]
    steep = (y[1] - y[0]).abs() >= (x[1] - x[0]).abs()
    along, across = torch.where(steep, y, x), torch.where(steep, x, y)
    height, width = torch.where(steep, H, W), torch.where(steep, W, H)
    first = ((along.amin(0) - 0.5).floor() + 1).clamp(min=0)
    count = ((along.amax(0) - 0.5).floor().minimum(height - 1) - first + 1).clamp(min=0).long()
    which = torch.arange(len(face), device=face.device).repeat_interleave(count)
    line = torch.arange(len(which), device=face.device) + (first.long() - count.cumsum(0) + count)[which]
    share = (line + 0.5 - along[0, which]) / (along[1] - along[0])[which]
    low = (torch.lerp(across[0, which], across[1, which], share) - 0.5).floor()
    depth = torch.lerp(z[0, which], z[1, which], share)
    kept = ((low >= 0) & (low <= width[which] - 2)).nonzero()[:, 0]
    which, line, low, depth = which[kept], line[kept], low[kept].long(), depth[kept]
    face, edge, vertices, steep = face[which], edge[which], vertices[:, which], steep[which]
    upward = (facing[face] == (along[1] > along[0])[which]) == steep  # inside is left of an edge that turns from x to y
    view = face // (len(facing) // B) * (H * W)
    pixels = [view + torch.where(steep, line * W + place, place * W + line) for place in (low + ~upward, low + upward)]
    return _Crossings(face, edge, vertices, *pixels, depth, line, steep, upward)


def _led_to(crossings: _Crossings, seen: Tensor, points: Tensor, corners: Tensor, facing: Tensor, ends: Tensor,
            adjacent: Tensor) -> _Crossings:
    """The crossings that are where the surface at the inner pixel ends, found by walking over its faces."""
    view = crossings.inner // seen[0].numel() * len(adjacent)
    here = view + seen.flatten()[crossings.inner]
    turned = crossings.upward == crossings.steep  # whether (outwards, along the line's normal) turns from x to y
    found = torch.zeros_like(turned)
    walking = torch.arange(len(here), device=here.device)
    for _ in range(HOPS):
        if not len(walking):
            break
        corner = corners[:, here]
        height = points[crossings.steep[walking].long(), corner] - points[3, corner] * (crossings.line[walking] + 0.5)
        above, rising = height >= 0, facing[here] == turned[walking]
        leaves = (above != rising) & (above.roll(-1, 0) == rising)
        exit = leaves.byte().argmax(0)
        found[walking] = (here == crossings.face[walking]) & (exit == crossings.edge[walking]) & leaves.any(0)
        on = (leaves.any(0) & ~ends[here, exit]).nonzero()[:, 0]
        walking, here = walking[on], view[walking[on]] + adjacent[here[on] % len(adjacent), exit[on]]
    return crossings[found]
