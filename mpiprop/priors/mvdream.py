"""Four views at once: a diffusion model of groups of views, told their cameras (MVDream, Shi et al. 2023).

B images in groups of V adjacent views, L positions, C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIEWS = 4


class Joined:
    """Self-attention of each group of V views as if it were one image: [B, L, C] is read as [B / V, V L, C]."""

    def __init__(self, views: int = VIEWS) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.views, self.within = views, AttnProcessor2_0()

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:
        if encoder_hidden_states is not None:
            return self.within(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        joined = hidden_states.reshape(-1, self.views * hidden_states.shape[1], hidden_states.shape[2])
        return self.within(attn, joined, None, attention_mask, temb).view_as(hidden_states)


def camera_labels(c2w: Tensor) -> Tensor:
    """What the model is told of cameras [B, 4, 4]: the matrix, its translation a unit vector, row by row: [B, 16]."""
    c2w = c2w.clone()
    c2w[:, :3, 3] = F.normalize(c2w[:, :3, 3], dim=-1)
    return c2w.flatten(1)
