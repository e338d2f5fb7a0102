"""The protocol of priors: frozen diffusion models that predict the noise in an image (DreamFusion, section 2).

Letters: B images, T timesteps, V strings, N tokens of width E, x0 and x_t [B, C, h, w] in the space the model denoises.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.priors.vocabulary import Vocabulary


Latents = Float[Tensor, "B C h w"]  # images in the space that a prior denoises, in any state of noise
Timesteps = Int[Tensor, " B"]
Pictures = Float[Tensor, "B 3 H W"]
Embeddings = Float[Tensor, "B N E"]  # of a text for each image
PerImage = Float[Tensor, "B 1 1 1"]
Inputs = Mapping[str, Tensor]
"""What a network reads beside x_t and t, by the names of `Prior.eps`'s parameters, a row for each image: text [B, N, E],
and of some priors image [B, C, h, w] or camera [B, 16]."""


class Prior(Protocol):
    """A frozen model of images under conditions such as a text.

    The constructor reads configuration files only; weights are read at their first use.
    """

    device: torch.device
    alpha_bar: Float[Tensor, " T"]  # float64 on the CPU, the cumulative product of 1 - beta
    group: int  # adjacent views that are denoised together
    reads: frozenset[str]  # the conditions that it needs: text, camera, picture
    vocabulary: Vocabulary | None  # all words that it knows; None: no such list

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Checks all files that the prior will read, without reading weights. Fetches the files of a hub model.

        Returns notes for the user, a line each: a file that was taken instead of another; words of `strings`, the texts
        to encode, that are cut off or unknown. Raises UserError for a file that is missing, damaged or of another model.
        """

    def weight_bytes(self) -> int:
        """Returns the bytes of the networks that stay on the device. Encoders of texts and pictures are freed after use and
        do not count."""

    def embed(self, strings: Sequence[str]) -> Float[Tensor, "V N E"]:
        """Encodes texts, then frees the encoder. Returns float32 on the CPU."""

    def ends(self, strings: Sequence[str]) -> list[int]:
        """Returns the place of the end token in each text's embedding: its state stands for the whole text."""

    def encode(self, rgb: Pictures, rng: Streams) -> Latents:
        """Returns x0 of images in [0, 1] of any size; differentiable."""

    def pictures(self, x: Latents) -> Pictures:
        """Returns the images of x in any state of noise, not clamped to [0, 1]; differentiable."""

    def decode(self, x0: Latents) -> Pictures:
        """Returns the images in [0, 1] of x0."""

    def eps(self, x_t: Latents, t: Timesteps, text: Embeddings, **inputs: Tensor) -> Latents:
        """Returns the noise predicted in x_t at timesteps t under a text and other `Inputs`; not differentiable."""


def alpha_sigma(prior: Prior, t: Timesteps) -> tuple[PerImage, PerImage]:
    """Returns alpha_t and sigma_t on the device of timesteps t: x_t = alpha_t x0 + sigma_t eps."""
    bar = alpha_bar_at(prior, t)
    return bar.sqrt(), (1 - bar).sqrt()


def alpha_bar_at(prior: Prior, t: Timesteps) -> PerImage:
    """Returns alpha_bar_t, float32 on the device of timesteps t."""
    return prior.alpha_bar.to(t.device)[t].float().view(-1, 1, 1, 1)


def alpha_bar(scheduler: Mapping[str, Any]) -> Float[Tensor, " T"]:
    """Returns alpha_bar, float64, of a complete diffusers scheduler configuration. Raises UserError for an unsupported
    one."""
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
