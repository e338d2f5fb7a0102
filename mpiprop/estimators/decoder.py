"""A small decoder of latents, whose gradient costs a fraction of an autoencoder's."""

import torch
from torch import Tensor

from mpiprop.estimators.files import FromFiles
from mpiprop.priors.parts import Parts


class TinyDecoder(FromFiles):
    """The decoder of an AutoencoderTiny for the prior's latents.

    model: a folder, or a hub id: madebyollin/taesd for Stable Diffusion 1 and 2 (MIT)
    variant: of the weight files, such as fp16
    revision: of the hub repository
    """

    def __init__(self, device: torch.device | str, *, model: str = "madebyollin/taesd", variant: str | None = None,
                 revision: str | None = None) -> None:
        super().__init__(device, Parts(model, variant, revision))

    def architecture(self) -> type:
        from diffusers import AutoencoderTiny

        return AutoencoderTiny

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the pictures [B, 3, H, W] of latents [B, C, h, w] as the prior has them, scaled to unit deviation."""
        return self.module.decode(x.to(self.module.dtype) / self.module.config.scaling_factor).sample / 2 + 0.5
