"""What rasterisers, the hash encoding and the search for samples compute, written down plainly in float64: slow, and not the
ways that the program takes. Differentiable where they are. Letters as in the modules that they stand for."""

import torch
from torch import Tensor

from mpiprop.shapes.clouds.base import Splats
from mpiprop.shapes.fields.encoding import Level
from mpiprop.views.cameras import Views


def splats(cloud: Splats, channels: Tensor, views: Views, near: float, far: float) -> Tensor:
    """Channels and opacity [B, H, W, 5]: every Gaussian at every pixel, composited one after another."""
    (H, W), pictures = views.size, []
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    w, a, b, c = cloud.rotations.double().unbind(-1)
    turn = torch.stack([w * w + a * a - b * b - c * c, 2 * (a * b - w * c), 2 * (a * c + w * b), 2 * (a * b + w * c),
                        w * w - a * a + b * b - c * c, 2 * (b * c - w * a), 2 * (a * c - w * b), 2 * (b * c + w * a),
                        w * w - a * a - b * b + c * c], -1).view(-1, 3, 3)
    spread = turn @ torch.diag_embed(cloud.scales.double() ** 2) @ turn.mT
    for view, values in zip(range(len(views)), channels.double()):
        world = (views.c2w[view, :3, :3].double() * torch.tensor([1, -1, -1])).T
        place = (cloud.means.double() - views.c2w[view, :3, 3].double()) @ world.T
        tan = torch.tan(views.fovy[view].double() / 2)
        focal = H / (2 * tan)
        total, light = torch.zeros(H, W, 5, dtype=torch.float64), torch.ones(H, W, dtype=torch.float64)
        for i in place[:, 2].argsort(stable=True).tolist():
            z = place[i, 2]
            if not near < z < far:
                continue
            u, v = place[i, 0] / z, place[i, 1] / z
            edge = 1.3 * tan
            J = focal / z * torch.stack([torch.stack([z / z, 0 * z, -u.clamp(-edge * W / H, edge * W / H)]),
                                         torch.stack([0 * z, z / z, -v.clamp(-edge, edge)])])
            form = torch.linalg.inv(J @ world @ spread[i] @ world.T @ J.T + 0.3 * torch.eye(2, dtype=torch.float64))
            d = torch.stack([x.double() - W / 2 - focal * u, y.double() - H / 2 - focal * v], -1)
            alpha = (cloud.opacities[i] * torch.exp(-(d @ form * d).sum(-1) / 2)).clamp(max=0.99)
            after = light * (1 - alpha)
            counts = (alpha >= 1 / 255) & (after >= 1e-4)
            light_here = torch.where(counts, light, 0) * alpha
            total = total + light_here[..., None] * torch.cat([values[i], values.new_ones(1)])
            light = torch.where(alpha >= 1 / 255, torch.where(counts, after, 0), light)
        pictures.append(total)
    return torch.stack(pictures)


def triangles(positions: Tensor, faces: Tensor, attributes: Tensor, size: tuple[int, int]) -> Tensor:
    """Attributes [B, H, W, C] of the nearest face at each pixel's centre, all faces in front of the camera."""
    (H, W), pictures = size, []
    y, x = torch.meshgrid(1 - (torch.arange(H) + 0.5) * 2 / H, (torch.arange(W) + 0.5) * 2 / W - 1, indexing="ij")
    for place in positions.double():
        image, depth = torch.zeros(H, W, attributes.shape[-1], dtype=torch.float64), torch.full((H, W), 1.0).double()
        for corners in faces.tolist():
            (X, Y, Z, w) = place[corners].T
            matrix = torch.stack([X, Y, w])  # columns: corners; its inverse makes homogeneous barycentric coordinates
            if float(torch.linalg.det(matrix.detach()).abs()) < 1e-12:
                continue
            shares = torch.linalg.inv(matrix) @ torch.stack([x.double(), y.double(), torch.ones_like(x).double()]).flatten(1)
            total = shares.sum(0)
            shares = (shares / total).view(3, H, W)
            z = (shares * Z[:, None, None]).sum(0) / (shares * w[:, None, None]).sum(0)
            seen = (shares >= 0).all(0) & (total.view(H, W) > 0) & (z.detach() < depth) & (z.detach() >= -1)
            image = torch.where(seen[..., None], torch.einsum("khw,kc->hwc", shares, attributes[corners].double()), image)
            depth = torch.where(seen, z.detach(), depth)
        pictures.append(image)
    return torch.stack(pictures)


def hashed(table: Tensor, unit: Tensor, levels: tuple[Level, ...]) -> Tensor:
    """Features [2 L, N] of points [3, N] in the unit cube, corner by corner with Python's whole numbers."""
    pairs, columns = table.view(-1, 2).double(), []
    for point in unit.T.double():
        features = []
        for level in levels:
            place = point * level.scale + 0.5
            low = place.detach().floor()
            total = pairs.new_zeros(2)
            for corner in range(8):
                step = [corner >> axis & 1 for axis in range(3)]
                x, y, z = (int(cell) + more for cell, more in zip(low, step))
                if level.resolution ** 3 > level.entries:
                    index = (x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)) % level.entries
                else:
                    index = (x + y * level.resolution + z * level.resolution ** 2) % level.entries
                share = torch.stack([part if more else 1 - part for part, more in zip(place - low, step)]).prod()
                total = total + share * pairs[level.offset + index]
            features.append(total)
        columns.append(torch.cat(features))
    return torch.stack(columns, 1)


def samples(origins: Tensor, directions: Tensor, occupied: Tensor, radius: float, step: float, jitter: Tensor) -> set[tuple]:
    """The (ray, number of the step) of all points (jitter + k + 1/2) step in occupied cells."""
    found, R = set(), len(occupied)
    for ray, (origin, direction, shift) in enumerate(zip(origins.double(), directions.double(), jitter.double())):
        for k in range(int(4 * (float(origin.norm()) + 2 * radius) / step)):
            cell = ((origin + direction * (shift + k + 0.5) * step + radius) / (2 * radius) * R).floor().long()
            if bool(((cell >= 0) & (cell < R)).all()) and bool(occupied[tuple(cell)]):
                found.add((ray, k))
    return found
