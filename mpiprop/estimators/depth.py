"""Depth estimators of the transformers library: DPT (Ranftl et al. 2021) and Depth Anything V2 (Yang et al. 2024).

Letters: B pictures, S the side of what the network reads (pixels).
"""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.estimators.files import FromFiles
from mpiprop.priors.parts import Parts


class Depth(FromFiles):
    """A network of depth."""

    kind: str  # model_type of its config.json
    mean = std = (0.5, 0.5, 0.5)  # of the pictures that the network was trained on, by channel

    def __init__(self, device: torch.device | str, parts: Parts, side: int | None) -> None:
        super().__init__(device, parts)
        self.wanted = side

    def sizes(self) -> tuple[int, int]:
        """Returns the side that the network was trained at, and the patch that a side is a multiple of (pixels)."""
        raise NotImplementedError

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Checks the files, and the side. See FromFiles."""
        if (kind := self.parts.config("").get("model_type")) != self.kind:
            raise UserError(f"model {self.parts.model!r}: its config.json says model_type {kind!r}; DPT reads 'dpt', "
                            "DepthAnything 'depth_anything'")
        self.side  # raises for one that does not fit
        return super().verify(strings)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Returns the inverse depth [B, S, S] in pictures [B, 3, H, W], up to scale and shift; differentiable."""
        pictures = pictures.to(self.module.dtype)
        mean, std = (pictures.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        pictures = F.interpolate(pictures, 2 * (self.side,), mode="bilinear", align_corners=False, antialias=True)
        return self.module((pictures - mean) / std).predicted_depth

    @cached_property
    def side(self) -> int:
        """S."""
        trained, patch = self.sizes()
        side = self.wanted or trained
        if side < patch or side % patch:
            raise UserError(f"side {side}: needs a multiple of {patch} pixels, which the network takes one by one")
        return side


class DPT(Depth):
    """DPT, also known as MiDaS 3: the inverse depth of each pixel.

    model: "builtin", a folder, or a hub id: Intel/dpt-hybrid-midas, Intel/dpt-large (Apache-2.0)
    variant: of the weight files, such as fp16
    revision: of the hub repository
    side: to which pictures are resized (pixels); default: what the network was trained at
    """

    kind = "dpt"

    def __init__(self, device: torch.device | str, *, model: str = "builtin", variant: str | None = None,
                 revision: str | None = None, side: int | None = None) -> None:
        super().__init__(device, Parts(model, variant, revision, "depth"), side)

    def architecture(self) -> type:
        from transformers import DPTForDepthEstimation

        return DPTForDepthEstimation

    def sizes(self) -> tuple[int, int]:
        from transformers import DPTConfig

        config = DPTConfig.from_dict(self.parts.config(""))
        return config.image_size, 32 if config.is_hybrid else config.patch_size


class DepthAnything(Depth):
    """Depth Anything V2: the inverse depth of each pixel.

    model: a folder, or a hub id: depth-anything/Depth-Anything-V2-Small-hf (Apache-2.0; the larger ones are not for
        commercial use)
    variant: of the weight files, such as fp16
    revision: of the hub repository
    side: to which pictures are resized (pixels); default: what the network was trained at
    """

    kind = "depth_anything"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

    def __init__(self, device: torch.device | str, *, model: str = "depth-anything/Depth-Anything-V2-Small-hf",
                 variant: str | None = None, revision: str | None = None, side: int | None = None) -> None:
        super().__init__(device, Parts(model, variant, revision), side)

    def architecture(self) -> type:
        from transformers import DepthAnythingForDepthEstimation

        return DepthAnythingForDepthEstimation

    def sizes(self) -> tuple[int, int]:
        from transformers import DepthAnythingConfig

        config = DepthAnythingConfig.from_dict(self.parts.config(""))
        return config.backbone_config.image_size, config.patch_size
