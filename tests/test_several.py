"""Several prompts in one batch: each view has its own, in its condition and in its object."""

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from mpiprop.appearance.backgrounds import Solid
from mpiprop.appearance.materials import NoMaterial
from mpiprop.conditioning.several import SeveralConditions
from mpiprop.conditioning.text import Four, TextConditions
from mpiprop.core.streams import Streams
from mpiprop.guidance.regularizers import PENALTIES
from mpiprop.objective.gradient import drawn
from mpiprop.objective.scene import Scene
from mpiprop.priors.closed_form import ClosedForm
from mpiprop.render.volume import Volume
from mpiprop.shapes.fields.base import Field
from mpiprop.shapes.generators.base import Generator, Text
from mpiprop.views.cameras import Views, orbit

PROMPTS = ("a red ball", "a blue ball", "a green ball")
ROWS = (2, 0, 0, 1)


def views() -> Views:
    return orbit(torch.tensor([0.0, 1.0, 2.0, -2.0]), 0.2, 1.8, 0.8, (8, 8))


def conditions() -> list[TextConditions]:
    prior = ClosedForm("cpu", size=8)
    return [TextConditions.of(prior, Four(perp_neg=1.0), prompt) for prompt in PROMPTS]


def test_runs_are_adjacent_views_of_one_prompt() -> None:
    assert views().under(ROWS).runs() == [(2, range(0, 1)), (0, range(1, 3)), (1, range(3, 4))]
    assert views().runs() == [(0, range(4))]
    assert views().under(ROWS)[1:].runs() == [(0, range(0, 2)), (1, range(2, 3))]


def test_each_view_is_told_of_its_own_prompt() -> None:
    each = conditions()
    batch = SeveralConditions(each.__getitem__)(views().under(ROWS))
    for row, prompt in enumerate(ROWS):
        alone = each[prompt](views()[row:row + 1])
        for ours, theirs in zip((batch.positive, batch.unconditional, *batch.negatives, *batch.texts.values()),
                                (alone.positive, alone.unconditional, *alone.negatives, *alone.texts.values())):
            assert torch.equal(ours["text"][row], theirs["text"][0])
        assert torch.equal(batch.weights[:, row], alone.weights[:, 0])


class Coloured(Field):
    radius = 1.0

    def __init__(self, colour: Tensor) -> None:
        super().__init__()
        self.colour = colour

    def density(self, x: Tensor) -> Tensor:
        return 30 * (0.5 - x.norm(dim=-1)).sigmoid()

    def features(self, x: Tensor) -> Tensor:
        return self.colour.expand(len(x), 3)


class Palette(Generator):
    radius = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(3))

    def field(self, text: Text, rng: Streams | None) -> Field:
        return Coloured(self.gain * text.pooled)


def scene() -> Scene:
    made = Scene(Palette(), NoMaterial(), Solid(Streams(0, 0)), Volume(samples=16))
    texts = torch.eye(3)
    made.texts = lambda prompt: Text(texts[prompt], texts[prompt][None])
    return made


@pytest.mark.parametrize("rng", [None, Streams(0, 3).part(range(2, 6), 8)])
def test_a_batch_is_the_renders_of_each_view_alone(rng: Streams | None) -> None:
    """Draws, samples and penalties included: a batch of several prompts, and its views one by one in their own rows."""
    whole = scene().render(views().under(ROWS), 3, rng)
    for row, prompt in enumerate(ROWS):
        own = rng and rng.part(range(2 + row, 3 + row), 8)
        alone = scene().render(views().under(ROWS)[row:row + 1], 3, own)
        for name in ("rgb", "opacity", "depth"):
            torch.testing.assert_close(getattr(whole, name)[row], getattr(alone, name)[0])
        fixed = Scene(Coloured(Parameter(torch.eye(3)[prompt])), NoMaterial(), Solid(Streams(0, 0)), Volume(samples=16))
        torch.testing.assert_close(whole.rgb[row], fixed.render(views()[row:row + 1], 3, own).rgb[0])
    if rng:
        penalties = [PENALTIES["z_variance"](scene().render(views().under(ROWS)[i:i + 1], 3, rng.part(range(2 + i, 3 + i), 8)),
                                             views()[i:i + 1]) for i in range(4)]
        torch.testing.assert_close(PENALTIES["z_variance"](whole, views()), torch.stack(penalties).mean())


def test_the_object_of_a_prompt_is_its_field() -> None:
    x = torch.zeros(1, 3)
    for prompt in range(3):
        assert scene().object(prompt).albedo(x).argmax().item() == prompt
    plain = Scene(Coloured(Parameter(torch.ones(3))), NoMaterial(), Solid(Streams(0, 0)), Volume(samples=8))
    assert plain.object() is plain


def test_prompts_are_drawn_uniformly_by_groups_and_by_the_step_alone() -> None:
    rows = torch.tensor([drawn(3, 8, 4, Streams(0, tau)) for tau in range(600)]).view(600, 2, 4)
    assert (rows == rows[:, :, :1]).all()
    counts = rows[:, :, 0].flatten().bincount(minlength=3).double()
    assert ((counts - 400) ** 2 / 400).sum() < 13.8  # chi square, 2 degrees of freedom, p = 0.001
    assert drawn(3, 8, 4, Streams(0, 5)) == drawn(3, 8, 4, Streams(0, 5).part(range(4, 8), 8))
