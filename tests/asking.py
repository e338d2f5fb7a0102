"""What a guidance predicts of given latents, without a render."""

import torch
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.guidance.distillation import Guided, Sample
from mpiprop.guidance.queries import answered
from mpiprop.priors.base import Inputs
from mpiprop.views.cameras import Views


def guided(guidance: Guided, x_t: Tensor, t: Tensor, views: Views, tau: int = 0) -> Tensor:
    """The guided noise prediction [B, C, h, w] in x_t."""
    sample = Sample(guidance.prior, x_t, t, guidance.prompts(views), views, tau, Streams(0, tau))
    return answered(guidance.guided(sample, x_t, t))


def stacked(*inputs: Inputs) -> dict[str, Tensor]:
    """The inputs of several batches as those of one."""
    return {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
