"""A prior with a noise prediction in closed form: Gaussian images of a coloured disc on white.

If x0 ~ N(mu, s^2), then E[eps | x_t] = sigma (x_t - alpha mu) / (alpha^2 s^2 + sigma^2): the posterior mean of a
linear Gaussian model. With it a small field becomes a ball of the prompt's colour in seconds, and tests know the exact
answer.

Letters: B images, V strings, h = w = size pixels, x0 and x_t [B, 3, h, w].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.priors.base import Latents, Pictures, Timesteps, alpha_bar
from mpiprop.priors.vocabulary import Vocabulary

COLOURS = {"red": (0.9, 0.1, 0.1), "orange": (1.0, 0.5, 0.0), "yellow": (0.95, 0.85, 0.1), "green": (0.1, 0.65, 0.15),
           "turquoise": (0.1, 0.8, 0.75), "blue": (0.1, 0.2, 0.9), "purple": (0.5, 0.1, 0.7), "pink": (1.0, 0.5, 0.75)}
GREY = (0.5, 0.5, 0.5)
SHADES = {"front": 1.0, "back": 0.5}  # so that the texts of views differ


class ClosedForm:
    """Gaussian images of a disc in the first colour that the text names (grey if none), darker seen from the back.

    size: of the pictures (pixels)
    radius: of the disc (half widths of the picture)
    spread: standard deviation s of the pictures, in [-1, 1] units
    """

    group = 1
    reads = frozenset({"text"})
    vocabulary = Vocabulary((), tuple(COLOURS), frozenset({"ball", "disc", "view", "side", "overhead", *SHADES}))

    def __init__(self, device: torch.device | str, *, size: int = 16, radius: float = 0.6, spread: float = 0.2) -> None:
        self.device, self.size, self.spread = torch.device(device), size, spread
        self.alpha_bar = alpha_bar({"num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
                                    "beta_start": 0.00085, "beta_end": 0.012})
        x = (torch.arange(size, device=self.device) + 0.5) * (2 / size) - 1
        self.disc = ((radius - torch.hypot(x[:, None], x)) * (size / 2) + 0.5).clamp(0, 1)  # coverage [h, w]

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Returns no notes: no file is read."""
        return []

    def weight_bytes(self) -> int:
        """Returns 0: there are no weights."""
        return 0

    def embed(self, strings: Sequence[str]) -> Float[Tensor, "V N E"]:
        """Returns the disc's colour, one token of width 3, in each text."""
        def colour(words: list[str]) -> Tensor:
            rgb = next((COLOURS[word] for word in words if word in COLOURS), GREY)
            return torch.tensor(rgb) * next((SHADES[word] for word in words if word in SHADES), 0.75)

        return torch.stack([colour(string.lower().replace(",", " ").split()) for string in strings])[:, None]

    def ends(self, strings: Sequence[str]) -> list[int]:
        """Returns zeros: there is one token."""
        return [0] * len(strings)

    def encode(self, rgb: Pictures, rng: Streams) -> Latents:
        """Returns the images in [-1, 1] at the prior's size; no random draws."""
        return F.interpolate(rgb, (self.size, self.size), mode="bilinear", align_corners=False) * 2 - 1

    def pictures(self, x: Latents) -> Pictures:
        """Returns the images of x, not clamped to [0, 1]; differentiable."""
        return x / 2 + 0.5

    def decode(self, x0: Latents) -> Pictures:
        """Returns the images in [0, 1]."""
        return self.pictures(x0).clamp(0, 1)

    def mean(self, text: Float[Tensor, "B 1 3"]) -> Float[Tensor, "B 3 h w"]:
        """Returns mu in [-1, 1]."""
        return 1 - 2 * self.disc * (1 - text[:, 0, :, None, None])

    @torch.no_grad()
    def eps(self, x_t: Latents, t: Timesteps, text: Float[Tensor, "B 1 3"]) -> Latents:
        """Returns E[eps | x_t]."""
        bar = self.alpha_bar.to(t.device)[t].float().view(-1, 1, 1, 1)
        return (1 - bar).sqrt() * (x_t - bar.sqrt() * self.mean(text)) / (bar * self.spread ** 2 + 1 - bar)
