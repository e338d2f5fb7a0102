"""The prompt as seen from each view: which text describes a render, and which texts it must not look like.

DreamFusion, section 3.2 (view-dependent prompts); Perp-Neg (Armandpour et al. 2023).

Letters: B views, V strings, X texts of a guidance, N tokens of width E, K negatives per view, R = 2 + K texts per view:
positive, unconditional, negatives. A table of directions turns views into mixing weights over the V strings that were
encoded once, so that every text of a batch is one matrix product and belongs to its view by construction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import pi, radians
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mpiprop.conditioning.base import Condition, texts_for
from mpiprop.core.errors import UserError
from mpiprop.priors.base import Prior
from mpiprop.shapes.generators.base import Text
from mpiprop.views.cameras import Views


class Directions:
    """A table of view-dependent texts."""

    reads = frozenset({"text"})

    def strings(self, prompt: str) -> list[str]:
        """Returns the V strings to encode; the last is the unconditional text, the one before it the prompt without a
        view."""
        raise NotImplementedError

    def __call__(self, azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"]
                 ) -> tuple[Float[Tensor, "R B V"], Float[Tensor, "K B"]]:
        """Returns mixing weights of the strings in every text, and the weights of the negatives."""
        raise NotImplementedError

    def check(self, prior: Prior) -> None:
        """Raises UserError for a prior that reads something else."""
        if prior.reads == self.reads:
            return
        if "picture" in prior.reads:
            raise UserError("tells of no picture, which this prior needs; use FromPicture")
        raise UserError("tells of no cameras, which this prior needs; use Cameras" if "camera" in prior.reads else
                        "tells of cameras, which this prior does not know; use Plain")

    def encode(self, prior: Prior, prompt: str, texts: Mapping[str, str]) -> "TextConditions":
        """Encodes the texts of `prompt`, and a guidance's own `texts`, by the prior's text encoder."""
        return TextConditions.of(prior, self, prompt, texts)


@dataclass(frozen=True)
class TextConditions:
    """The encoded texts of one prompt."""

    embeddings: Float[Tensor, "V N E"]  # float32
    directions: Directions
    texts: Mapping[str, Tensor] = field(default_factory=dict)  # [N, E] of each of the guidance's own texts
    end: int = 0  # place of the end token in the prompt without a view

    @classmethod
    def of(cls, prior: Prior, directions: Directions, prompt: str, texts: Mapping[str, str] = {}) -> Self:
        """Encodes the texts of `prompt` for a prior. Raises UserError where it reads something else."""
        directions.check(prior)
        strings = directions.strings(prompt)
        embeddings = prior.embed([*strings, *texts_for(prompt, texts)])
        (end,) = prior.ends([strings[-2]])
        return cls(embeddings[:len(strings)], directions, dict(zip(texts, embeddings[len(strings):])), end)

    @property
    def text(self) -> Text:
        """The prompt without a view, for a generator."""
        return Text(self.embeddings[-2, self.end], self.embeddings[-2])

    def to(self, device: torch.device | str) -> "TextConditions":
        """Returns the same on a device."""
        return replace(self, embeddings=self.embeddings.to(device),
                       texts={name: text.to(device) for name, text in self.texts.items()})

    def __call__(self, views: Views) -> Condition:
        """Returns the texts of views by their azimuth and elevation."""
        mix, weights = self.directions(views.azimuth, views.elevation)
        to, B = self.embeddings.device, len(views)
        positive, unconditional, *negatives = torch.einsum("rbv,vne->rbne", mix.to(to), self.embeddings)
        named = {"plain": self.embeddings[-2], **self.texts}
        return Condition({"text": positive}, {"text": unconditional}, tuple({"text": text} for text in negatives),
                         weights.to(to), {name: {"text": text.expand(B, -1, -1)} for name, text in named.items()})


class Plain(Directions):
    """The same text for every view.

    negative: what the unconditional text says
    """

    def __init__(self, *, negative: str = "") -> None:
        self.negative = negative

    def strings(self, prompt: str) -> list[str]:
        return [prompt, self.negative]

    def __call__(self, azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"]
                 ) -> tuple[Float[Tensor, "R B V"], Float[Tensor, "K B"]]:
        mix = torch.eye(2, device=azimuth.device)[:, None].expand(2, len(azimuth), 2)
        return mix, mix.new_zeros(0, len(azimuth))


class Four(Directions):
    """Side, front, back and overhead views; the last that matches wins (DreamFusion, section 3.2).

    front_deg: a view is from the front below this azimuth (degrees)
    back_deg: a view is from the back when it is closer to 180 than this (degrees)
    overhead_deg: a view is from overhead above this elevation (degrees)
    perp_neg: strength of Perp-Neg, which also interpolates between views; 0: off, 1: as published, with guidance.cfg: B (with
        cfg: A the whole direction counts scale + 1 times, not scale times)
    negative: what the unconditional text says
    front: the front view's text, instead of "{prompt}, front view"
    side: the side view's text
    back: the back view's text
    overhead: the overhead view's text
    """

    SIDE, FRONT, BACK, OVERHEAD, V = 0, 1, 2, 3, 6

    def __init__(self, *, front_deg: float = 45.0, back_deg: float = 45.0, overhead_deg: float = 60.0,
                 perp_neg: float = 0.0, negative: str = "", front: str | None = None, side: str | None = None,
                 back: str | None = None, overhead: str | None = None) -> None:
        self.front_below, self.back_above = radians(front_deg), pi - radians(back_deg)
        self.overhead_above = radians(overhead_deg)
        self.perp_neg, self.negative = perp_neg, negative
        self.texts = {"side": side, "front": front, "back": back, "overhead": overhead}

    def strings(self, prompt: str) -> list[str]:
        views = [text or f"{prompt}, {view} view" for view, text in self.texts.items()]
        return [*views, prompt, self.negative]

    def __call__(self, azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"]
                 ) -> tuple[Float[Tensor, "R B V"], Float[Tensor, "K B"]]:
        turn, overhead = azimuth.abs(), elevation > self.overhead_above
        if self.perp_neg:
            return self._perp_neg(turn / (pi / 2), overhead)
        view = torch.full_like(turn, self.SIDE, dtype=torch.long)
        view[turn < self.front_below] = self.FRONT
        view[turn > self.back_above] = self.BACK
        view[overhead] = self.OVERHEAD
        return torch.stack([_pick(view, self.V), _last(view, self.V)]), turn.new_zeros(0, len(turn))

    def _perp_neg(self, quarter: Tensor, overhead: Tensor) -> tuple[Tensor, Tensor]:
        """Between front (0), side (1) and back (2) quarter turns; the weights of the published code."""
        side, front, back, above = (_pick(torch.full_like(quarter, v, dtype=torch.long), self.V)
                                    for v in (self.SIDE, self.FRONT, self.BACK, self.OVERHEAD))
        ahead, r = quarter < 1, torch.where(quarter < 1, 1 - quarter, 2 - quarter)
        mix = torch.where(ahead[:, None], torch.lerp(side, front, r[:, None]), torch.lerp(back, side, r[:, None]))
        mix = torch.where(overhead[:, None], above, mix)
        first, second = torch.where(ahead[:, None], front, side), torch.where(ahead[:, None], side, front)
        f_first = torch.where(ahead, _decay(r, 4, -2.426), _decay(r, 1, -0.606))
        f_second = torch.where(ahead, _decay(1 - r, 4, -2.426), _decay(r, 1, 0.967))
        weights = -self.perp_neg * torch.stack([f_first, f_second]) * ~overhead
        return torch.stack([mix, _last(r, self.V), first, second]), weights


class Eight(Directions):
    """Eight views around, each also from above, and overhead: the captions the built-in prior was trained on.

    above_deg: a view is "from above" over this elevation (degrees)
    overhead_deg: a view is from overhead over this elevation (degrees)
    interpolate: mix the texts of the two nearest views around instead of taking the nearest
    opposite: Perp-Neg weight that pushes away from the view from the other side; 0: off
    negative: what the unconditional text says
    """

    AROUND = ("front", "front left", "left side", "back left", "back", "back right", "right side", "front right")
    OVERHEAD, V = 16, 19

    def __init__(self, *, above_deg: float = 25.0, overhead_deg: float = 60.0, interpolate: bool = False,
                 opposite: float = 0.0, negative: str = "") -> None:
        self.above, self.overhead = radians(above_deg), radians(overhead_deg)
        self.interpolate, self.opposite, self.negative = interpolate, opposite, negative

    def strings(self, prompt: str) -> list[str]:
        views = [f"{prompt}, {view} view{up}" for up in ("", " from above") for view in self.AROUND]
        return [*views, f"{prompt}, overhead view", prompt, self.negative]

    def __call__(self, azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"]
                 ) -> tuple[Float[Tensor, "R B V"], Float[Tensor, "K B"]]:
        sector = azimuth / (pi / 4)
        positive = self._around(sector, elevation)
        rows, weights = [positive, _last(sector, self.V)], sector.new_zeros(0, len(sector))
        if self.opposite:
            rows.append(self._around(sector + 4, elevation))
            weights = -self.opposite * (elevation <= self.overhead)[None].to(sector)
        return torch.stack(rows), weights

    def _around(self, sector: Tensor, elevation: Tensor) -> Tensor:
        low, part = sector.floor(), sector - sector.floor()
        part = part if self.interpolate else (part >= 0.5).to(part)
        above = 8 * (elevation > self.above)
        here, next_ = (_pick((low.long() + step) % 8 + above, self.V) for step in (0, 1))
        overhead = _pick(torch.full_like(above, self.OVERHEAD), self.V)
        return torch.where((elevation > self.overhead)[:, None], overhead, torch.lerp(here, next_, part[:, None]))


def _pick(view: Tensor, V: int) -> Tensor:
    return F.one_hot(view, V).float()


def _last(like: Tensor, V: int) -> Tensor:
    return _pick(torch.full_like(like, V - 1, dtype=torch.long), V)


def _decay(r: Tensor, a: float, c: float) -> Tensor:
    return a * torch.exp(-0.5 * r) + c
