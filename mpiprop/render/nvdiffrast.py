"""The functions of `raster` by nvdiffrast (Laine et al., arXiv 2011.03277), an optional package for CUDA.

Its licence is for non-commercial use, and it is not on PyPI: it is installed by hand and never required. Its atomic
additions make gradients differ in their last bits from run to run. Letters as in `raster`; float32 only.
"""

from functools import cache
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mpiprop.core.errors import RunError
from mpiprop.render.raster import Fragments


def rasterize(positions: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], size: tuple[int, int]) -> Fragments:
    """As raster.rasterize."""
    library, context = _library(positions.device)
    raster, _ = library.rasterize(context, _downwards(positions), faces.int(), size, grad_db=False)
    u, v, depth, number = raster.unbind(-1)
    face, covered = number.long() - 1, number > 0
    barycentric = torch.stack([u, v, 1 - u - v], -1) * covered[..., None]
    return Fragments(face, barycentric, torch.where(covered, depth, 1.0).detach())


def interpolate(attributes: Float[Tensor, "b V C"], faces: Int[Tensor, "F 3"], fragments: Fragments
                ) -> Float[Tensor, "B H W C"]:
    """As raster.interpolate."""
    library, _ = _library(attributes.device)
    return library.interpolate(attributes.contiguous(), _raster(fragments), faces.int())[0]


def antialias(colour: Float[Tensor, "B H W C"], fragments: Fragments, positions: Float[Tensor, "B V 4"],
              faces: Int[Tensor, "F 3"], adjacent: Int[Tensor, "F 3"]) -> Float[Tensor, "B H W C"]:
    """As raster.antialias, but only the face at the centre of a pixel can end there; `adjacent` is unused."""
    library, _ = _library(colour.device)
    return library.antialias(colour.contiguous(), _raster(fragments), _downwards(positions), faces.int())


@cache
def _library(device: torch.device) -> tuple[ModuleType, object]:
    """The package and its context on a device."""
    try:
        import nvdiffrast.torch as library
    except ImportError as error:
        raise RunError(f"nvdiffrast does not load ({error}); install it again, or set the renderer's backend: torch") from error
    if device.type != "cuda":
        raise RunError(f"nvdiffrast needs a CUDA device, not {device}; set the renderer's backend: torch")
    return library, library.RasterizeCudaContext(device=device)


def _downwards(positions: Tensor) -> Tensor:
    """Clip positions with y down: nvdiffrast's row 0 is the bottom."""
    return positions * positions.new_tensor([1, -1, 1, 1])


def _raster(fragments: Fragments) -> Tensor:
    """nvdiffrast's record of fragments [B, H, W, 4]: two barycentric coordinates, depth and 1 + face."""
    number = (fragments.face + 1)[..., None].to(fragments.barycentric.dtype)
    return torch.cat([fragments.barycentric[..., :2], fragments.depth[..., None], number], -1)
