"""A closed mesh with a texture: what DreamGaussian refines when the shape is done (Tang et al. 2023, section 3.3).

Letters: V vertices, F faces, U vertices of the atlas, S x S texels.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.shapes.base import Shape
from mpiprop.shapes.surfaces.base import Skin, TexturedSurface


class TexturedMesh(TexturedSurface):
    """The surface of the stage before, cut open and laid flat, with its colours as a picture that trains.

    What does not train rides along: vertices, faces and where they are on the picture, in sizes that are found when the stage
    begins. Whole numbers are exact in float32 up to 16 million.

    texture: height and width of the picture (texels)
    resolution: cells along each side of the box in which a field's surface is found
    threshold: density at the surface of a field; auto: the mean where not empty
    parts: components with fewer faces than this share of the largest one's are dropped
    faces: number of faces to come down to; 0: keep all
    offsets: vertices move, too
    """

    def __init__(self, rng: Streams, *, texture: int = 1024, resolution: int = 128, threshold: float | Literal["auto"] = "auto",
                 parts: float = 0.01, faces: int = 50000, offsets: bool = False) -> None:
        super().__init__()
        if texture < 2:
            raise UserError(f"texture {texture}: needs at least 2 texels")
        if resolution < 2 or faces < 0:
            raise UserError(f"resolution {resolution}, faces {faces}: need at least 2 and 0")
        self.handover_mesh = {"resolution": resolution, "threshold": threshold, "parts": parts, "faces": faces,
                              "texture": texture}
        self.texture = nn.Parameter(torch.zeros(texture, texture, 3))
        self.vertices = nn.Buffer(torch.zeros(0, 3))  # [V, 3] world units
        self.faces = nn.Buffer(torch.zeros(0, 3))  # [F, 3] into V
        self.uv = nn.Buffer(torch.zeros(0, 2))  # [U, 2], see Skin
        self.corners = nn.Buffer(torch.zeros(0, 3))  # [F, 3] into U
        self.offsets = nn.Parameter(torch.zeros(0, 3)) if offsets else None

    def check_start(self, previous: Shape) -> None:
        """Raises UserError for a textured mesh of another size of texture; any other shape has a surface to be found."""
        theirs = len(previous.skin().features) if isinstance(previous, TexturedSurface) else len(self.texture)
        if theirs != len(self.texture):
            raise UserError(f"a TexturedMesh of {len(self.texture)} texels a side cannot begin with one of {theirs}: "
                            "give both stages the same texture")

    @property
    def radius(self) -> float:
        """Half the side of the box around the mesh at first."""
        return self.vertices.abs().max().item()

    def take(self, vertices: Float[Tensor, "M 3"], faces: Int[Tensor, "F 3"], uv: Float[Tensor, "U 2"],
             corners: Int[Tensor, "F 3"], features: Float[Tensor, "S S 3"]) -> None:
        """Becomes this mesh with this skin, whose texture `features` is as large as its own."""
        tensors = {"vertices": vertices, "faces": faces, "uv": uv, "corners": corners, "texture": features}
        if self.offsets is not None:
            tensors["offsets"] = torch.zeros_like(vertices)
        for name, values in tensors.items():
            mine = getattr(self, name)
            mine.data = values.detach().to(mine.device, mine.dtype)

    def surface(self) -> tuple[Float[Tensor, "M 3"], Int[Tensor, "F 3"]]:
        """Vertices (world units), differentiable where they move, and faces (int64)."""
        vertices = self.vertices if self.offsets is None else self.vertices + self.offsets
        return vertices, self.faces.long()

    def skin(self) -> Skin:
        return Skin(self.uv, self.corners.long(), self.texture)

    def riding(self) -> dict[str, Tensor]:
        return {"vertices": self.vertices, "faces": self.faces, "uv": self.uv, "corners": self.corners}
