"""What a prior is: a frozen diffusion model that says which noise it sees in an image (DreamFusion, section 2).

B images, T timesteps, V strings, N tokens of width E, x0 and x_t [B, C, h, w] in the space the model denoises.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.priors.vocabulary import Vocabulary


Inputs = Mapping[str, Tensor]
"""What a network reads beside x_t and t, by the names of `Prior.eps`'s parameters, a row for each image: text [B, N, E],
and of some priors image [B, C, h, w] or camera [B, 16]."""


class Prior(Protocol):
    """A frozen model of images given text and whatever else it is told. Building one is cheap: weights are read when they are
    first used."""

    device: torch.device
    alpha_bar: Tensor  # [T] float64 on the CPU, the cumulative product of 1 - beta
    group: int  # adjacent views that are denoised together
    reads: frozenset[str]  # kinds of conditions that it must be told: text, camera, picture
    vocabulary: Vocabulary | None  # all words that it knows, of a model that knows few

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Checks everything that the prior will read, without reading weights; a hub model's files are fetched.

        Returns what the user should be told, a line each: of a file that was taken instead of another, of words of
        `strings` (the texts to be embedded) that are lost or unknown. Raises UserError, one line, where a file is missing,
        damaged or of another model.
        """

    def weight_bytes(self) -> int:
        """Bytes of the networks that stay on the device while the prior is used; encoders of texts and pictures, which are
        freed after use, do not count."""

    def embed(self, strings: Sequence[str]) -> Tensor:
        """The embeddings [V, N, E] float32 on the CPU of the strings; what encoded them is freed."""

    def encode(self, rgb: Tensor, rng: Streams) -> Tensor:
        """x0 of rgb [B, 3, H, W] in [0, 1], of any size; differentiable."""

    def decode(self, x0: Tensor) -> Tensor:
        """The image [B, 3, H, W] in [0, 1] of x0."""

    def eps(self, x_t: Tensor, t: Tensor, text: Tensor, **inputs: Tensor) -> Tensor:
        """The noise predicted in x_t at timesteps t [B] given text [B, N, E] and other `Inputs`; not differentiable."""


def alpha_sigma(prior: Prior, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns alpha_t and sigma_t [B, 1, 1, 1] on the device of timesteps t [B]: x_t = alpha_t x0 + sigma_t eps."""
    bar = alpha_bar_at(prior, t)
    return bar.sqrt(), (1 - bar).sqrt()


def alpha_bar_at(prior: Prior, t: Tensor) -> Tensor:
    """Returns alpha_bar_t [B, 1, 1, 1] float32 on the device of timesteps t [B]."""
    return prior.alpha_bar.to(t.device)[t].float().view(-1, 1, 1, 1)


def alpha_bar(scheduler: Mapping[str, Any]) -> Tensor:
    """The table [T] float64 of a whole diffusers scheduler configuration; raises UserError for one that it does not cover."""
    T, kind = scheduler["num_train_timesteps"], scheduler["beta_schedule"]
    start, end = scheduler["beta_start"], scheduler["beta_end"]
    if scheduler.get("rescale_betas_zero_snr"):
        raise UserError("scheduler: rescale_betas_zero_snr is not supported: x_T would hold no image at all")
    if scheduler.get("trained_betas") is not None:
        beta = torch.tensor(scheduler["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        beta = torch.linspace(start, end, T, dtype=torch.float64)
    elif kind == "scaled_linear":
        beta = torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=torch.float64) ** 2
    elif kind == "squaredcos_cap_v2":  # Improved DDPM, Eq. (17)
        s = torch.linspace(0, 1, T + 1, dtype=torch.float64)
        f = torch.cos((s + 0.008) / 1.008 * (math.pi / 2)) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp_max(0.999)
    else:
        raise UserError(f"scheduler: beta_schedule {kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2")
    return torch.cumprod(1 - beta, 0)
