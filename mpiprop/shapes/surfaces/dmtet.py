"""A deformable tetrahedral mesh with a texture: the refined shape of Magic3D and ProlificDreamer (Shen et al. 2021,
"DMTet", section 3.1; Lin et al. 2023, section 4.2).

Letters: N points, V vertices of the lattice, M vertices and F faces of the surface.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mpiprop.core.errors import RunError, UserError, positive
from mpiprop.core.streams import Streams
from mpiprop.geometry import triangles
from mpiprop.geometry.isosurface import CHUNK, EMPTY, MARGIN
from mpiprop.shapes.base import Shape
from mpiprop.shapes.fields.base import Field
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.shapes.fields.networks import MLP
from mpiprop.shapes.surfaces.base import Surface
from mpiprop.shapes.surfaces.tetrahedra import crossing, lattice, march

OUTSIDE = 1e-3  # least signed distance on the lattice's border: the surface ends there, closed
FINEST = 512  # resolution: 17 million vertices in 103 million tetrahedra
TEXTURE = ("encoding.", "feature_network.")  # names of the parameters that a texture has here and in fields


class DMTet(Surface):
    """A closed surface where signed distances on a lattice, whose vertices may move, change sign.

    radius: half side of the box that holds everything (world units)
    resolution: of the lattice, which has about resolution^3 / 8 vertices
    sphere: radius of the sphere to begin with (world units)
    fit: mesh file to begin with instead, centred; z up in PLY and STL files, y up in all others
    fit_size: half of that mesh's longest side (world units)
    threshold: density at the surface of a density field of the stage before; auto: the mean where it is not empty
    drop: parts of fewer vertices than this share of the largest are dropped from what it begins with
    fixed: whether the surface stays as it is, without training
    textured: whether it has features; without, it is grey
    inherit_texture: whether to begin with the texture of the shape before, not with a fresh one
    levels: grids in the texture's pyramid, of 2 features each
    log2_table: binary logarithm of the most entries a grid may have
    base_resolution: cells a side of the coarsest grid
    growth: resolution of a grid over that of the next coarser one
    hidden: width of the texture network's hidden layers
    hidden_layers: hidden layers in the texture network
    backend: "torch" (any device) or "tcnn" (tiny-cuda-nn, CUDA), whose gradients differ in their last bits each time; the
        numbers mean the same; auto: torch
    """

    def __init__(self, rng: Streams, *, radius: float = 2.0, resolution: int = 128, sphere: float = 0.5,
                 fit: str | None = None, fit_size: float = 0.5, threshold: float | Literal["auto"] = "auto",
                 drop: float = 0.0, fixed: bool = False, textured: bool = True, inherit_texture: bool = True,
                 levels: int = 16, log2_table: int = 19, base_resolution: int = 16, growth: float = 1.447269237440378,
                 hidden: int = 64, hidden_layers: int = 1, backend: Literal["auto", "torch", "tcnn"] = "auto") -> None:
        super().__init__()
        positive(radius=radius, hidden=hidden, hidden_layers=hidden_layers)
        if not 4 <= resolution <= FINEST:
            raise UserError(f"resolution: needs a number in [4, {FINEST}], got {resolution}")
        self.radius, self.resolution, self.threshold, self.drop = radius, resolution, threshold, drop
        self.fixed, self.inherit_texture = fixed, inherit_texture
        grid = lattice(resolution)
        self.vertices = nn.Buffer(grid.vertices, persistent=False)
        self.tetrahedra = nn.Buffer(grid.tetrahedra, persistent=False)
        self.border = nn.Buffer(grid.border, persistent=False)
        self.box = nn.Buffer(torch.tensor([[-radius] * 3, [radius] * 3]))  # lower and upper corner, world units
        held = nn.Buffer if fixed else nn.Parameter
        self.sdf = held(torch.zeros(len(grid.vertices)))
        self.deformation = held(torch.zeros(len(grid.vertices), 3))
        self._known: tuple[Tensor, ...] | None = None  # sdf, deformation, box of a fixed surface, and that surface
        if textured:
            self.encoding = HashEncoding(rng.of("encoding"), levels, log2_table, base_resolution, growth, backend)
            widths = (self.encoding.channels, *hidden_layers * (hidden,))
            self.feature_network = MLP(rng.of("features"), *widths, 3)
        self.mesh = None if fit is None else triangles.load(fit, fit_size)
        self._fill(lambda x: sphere - x.norm(dim=-1), 0.0)

    def begin(self) -> None:
        if self.mesh is not None:
            self._enclose(*(part.to(self.sdf.device) for part in self.mesh))

    def surface(self) -> tuple[Float[Tensor, "M 3"], Int[Tensor, "F 3"]]:
        """Vertices (world units), differentiable in signed distances and deformation, and faces (int64), counterclockwise
        seen from outside. Always closed. Raises RunError where nothing is inside."""
        state = (self.sdf, self.deformation, self.box)
        if self.fixed and self._known and all(torch.equal(old, new) for old, new in zip(self._known, state)):
            return self._known[3:]
        ends, faces = march(self.tetrahedra, (self.sdf <= 0) & ~self.border)
        if not len(faces):
            raise RunError("the surface is empty: no vertex of the lattice is inside; train with a lower learning rate for "
                           "geometry, or begin with another shape or a lower threshold")
        values = torch.where(self.border[ends], self.sdf[ends].clamp(min=OUTSIDE), self.sdf[ends])
        vertices = crossing(self._place(ends), values)
        if self.fixed:
            self._known = (*(tensor.clone() for tensor in state), vertices, faces)
        return vertices, faces

    def features(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Features at points; zero where there is no texture."""
        if not hasattr(self, "encoding"):
            return torch.zeros_like(x)
        unit = torch.add(0.5, x.T, alpha=0.5 / self.radius).clamp(0, 1)
        return self.feature_network(self.encoding(unit)).T

    def riding(self) -> dict[str, Tensor]:
        return {"box": self.box} | ({"sdf": self.sdf, "deformation": self.deformation} if self.fixed else {})

    def check_start(self, previous: Shape) -> None:
        """Raises UserError for what is neither a field nor another DMTet, and where textures to be inherited differ."""
        if not isinstance(previous, (DMTet, Field)):
            raise UserError(f"a DMTet cannot begin with a {type(previous).__name__}; with HashGrid, SDF or DMTet it can")
        if not (self.inherit_texture and hasattr(self, "encoding")):
            return
        theirs = dict(previous.named_parameters())
        for name, mine in self.named_parameters():
            if name.startswith(TEXTURE):
                if name not in theirs or theirs[name].shape != mine.shape or previous.radius != self.radius:
                    raise UserError("inherit_texture: the previous stage's texture differs (radius, levels, "
                                    "log2_table, base_resolution, growth, hidden); make them equal or set it false")

    @torch.no_grad()
    def begin_with(self, previous: Shape) -> None:
        """Takes over, in place, the surface of a field or of another DMTet, and its texture if so configured.
        The box closes tightly around it. Raises RunError where that is empty, and what `check_start` does."""
        self.check_start(previous)
        if isinstance(previous, DMTet) and previous.resolution == self.resolution:
            for name in ("box", "sdf", "deformation"):
                getattr(self, name).copy_(getattr(previous, name))
            self._drop()
        elif isinstance(previous, DMTet):
            self._enclose(*previous.surface())
        else:
            self._fill(previous.solid, self.threshold if previous.level is None else previous.level)
        if self.inherit_texture and hasattr(self, "encoding"):
            theirs = dict(previous.named_parameters())
            for name, mine in self.named_parameters():
                if name.startswith(TEXTURE):
                    mine.copy_(theirs[name])

    def _place(self, which: Tensor | slice) -> Tensor:
        """Positions of some of the lattice's vertices now (world units)."""
        unit = self.vertices[which] + torch.tanh(self.deformation[which]) / self.resolution
        return self.box[0] + unit * (self.box[1] - self.box[0])

    def _close_in(self, low: Tensor, high: Tensor) -> None:
        margin = MARGIN * (high - low)
        self.box.copy_(torch.stack([low - margin, high + margin]).clamp(-self.radius, self.radius))

    @torch.no_grad()
    def _fill(self, solid: Callable[[Tensor], Tensor], threshold: float | Literal["auto"]) -> None:
        """Takes the surface where `solid` (points [N, 3] -> [N]) falls through the threshold: first in the whole box,
        then in the one close around it."""
        self.box.copy_(torch.tensor([[-self.radius] * 3, [self.radius] * 3]))
        self.deformation.zero_()
        for closer in (False, True):
            if closer:
                self._close_in(*self.surface()[0].aminmax(dim=0))
            values = torch.cat([solid(part) for part in self._place(slice(None)).split(CHUNK)])
            something = values[values > EMPTY]
            level = something.mean() if threshold == "auto" else threshold
            self.sdf.copy_((level - values).clamp(-1, 1))
            self._drop()

    @torch.no_grad()
    def _enclose(self, vertices: Tensor, faces: Tensor) -> None:
        """Takes the surface of a closed mesh."""
        self._close_in(*vertices.aminmax(dim=0))
        self.deformation.zero_()
        self.sdf.copy_(triangles.signed_distance(vertices, faces, self._place(slice(None))))
        self._drop()

    def _drop(self) -> None:
        """Turns small parts of matter, and small holes inside it, into what is around them."""
        if not self.drop:
            return
        from trimesh.graph import connected_component_labels

        inside = (self.sdf <= 0) & ~self.border
        pairs = self.tetrahedra[torch.combinations(torch.arange(4, device=self.sdf.device))].transpose(0, 1).flatten(1)
        together = pairs[:, inside[pairs[0]] == inside[pairs[1]]]
        label = torch.from_numpy(connected_component_labels(together.T.cpu().numpy(), len(inside))).long()
        size = label.bincount()
        largest = label[inside.cpu()].bincount().max() if inside.any() else 0
        small = (size < self.drop * largest)[label].to(inside.device) & ~self.border
        self.sdf.copy_(torch.where(small, -self.sdf, self.sdf))
