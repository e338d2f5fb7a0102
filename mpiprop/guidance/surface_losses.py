"""Regularizers of surfaces and signed distances (Magic3D; ProlificDreamer; TextMesh, eq. 5).

Letters: V vertices and F faces of a closed mesh of consistent orientation, in which each edge occurs once in either direction
and no table of edges is needed; N points. All are differentiable in the vertices or the slope.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mpiprop.geometry.triangles import vertex_normals
from mpiprop.guidance.base import Scalar


def normal_consistency(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Scalar:
    """Mean over the edges of 1 - cos between the normals of vertices at both ends (Magic3D's, weight 10 000)."""
    start, end = _walked(faces)
    once = start < end
    normals = vertex_normals(vertices, faces)
    return 1 - (normals[start[once]] * normals[end[once]]).sum(-1).mean()


def laplacian(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Scalar:
    """Mean over the vertices of |sum over neighbours of v - neighbour|, the uniform Laplacian."""
    start, end = _walked(faces)
    rows = torch.zeros_like(vertices).index_add(0, start, vertices[start] - vertices[end])
    return (rows.square().sum(-1) + 1e-20).sqrt().mean()


def eikonal(slope: Float[Tensor, "N 3"]) -> Scalar:
    """Mean of (|slope| - 1)^2 over gradients of a signed distance."""
    return ((slope.square().sum(-1) + 1e-20).sqrt() - 1).square().mean()


def _walked(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end [3 F] of each face's edges, corner after corner."""
    return faces.T.reshape(-1), faces[:, [1, 2, 0]].T.reshape(-1)
