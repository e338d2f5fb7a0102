"""Which text describes which view, against per-view loops; and what becomes of a text that is too long."""

import math
import pickle
import shutil
from math import radians

import pytest
import tiny_models
import torch

from mpiprop.core.errors import UserError
from mpiprop.corpus.captions import view_phrase
from mpiprop.priors.diffusion import DeepFloyd, StableDiffusion
from mpiprop.conditioning.text import Eight, Four, Plain, TextConditions
from mpiprop.views.cameras import orbit

AZIMUTH = torch.linspace(-math.pi + 0.01, math.pi, 97)
ELEVATION = torch.linspace(-0.6, 1.5, 97)[torch.arange(97) * 31 % 97]  # in another order than the azimuths
VIEWS = orbit(AZIMUTH, ELEVATION, 1.8, 0.8, (8, 8))


def texts(directions, prompt="p"):
    """The texts of every view in words: each row of the mixing weights must pick exactly one string."""
    mix, weights = directions(AZIMUTH, ELEVATION)
    assert ((mix == 0) | (mix == 1)).all() and (mix.sum(-1) == 1).all()
    strings = directions.strings(prompt)
    return [[strings[i] for i in row] for row in mix.argmax(-1)], weights


def test_plain_says_the_same_for_every_view():
    rows, weights = texts(Plain(negative="blurry"))
    assert rows == [["p"] * 97, ["blurry"] * 97] and weights.shape == (0, 97)


@pytest.mark.parametrize("front, back, overhead", [(45, 45, 60), (30, 60, 40)])
def test_four_views_last_match_wins(front, back, overhead):
    rows, _ = texts(Four(front_deg=front, back_deg=back, overhead_deg=overhead, negative="ugly"))
    for azimuth, elevation, text in zip(AZIMUTH.tolist(), ELEVATION.tolist(), rows[0]):
        view = "side"
        if abs(azimuth) < radians(front):
            view = "front"
        if abs(azimuth) > radians(180 - back):
            view = "back"
        if elevation > radians(overhead):
            view = "overhead"
        assert text == f"p, {view} view"
    assert set(rows[1]) == {"ugly"}


def test_a_view_can_be_worded_by_hand():
    assert Four(back="the tail of p", overhead="p from the sky").strings("p") == [
        "p, side view", "p, front view", "the tail of p", "p from the sky", "p", ""]


def test_perp_neg_interpolates_and_weighs_as_published():
    directions = Four(perp_neg=0.5)
    mix, weights = directions(AZIMUTH, ELEVATION)
    assert mix.shape == (4, 97, 6) and weights.shape == (2, 97)
    for b, (azimuth, elevation) in enumerate(zip(AZIMUTH.tolist(), ELEVATION.tolist())):
        degrees, f = abs(azimuth) * 180 / math.pi, lambda a, c, r: a * math.exp(-0.5 * r) + c
        if elevation > radians(60):
            positive, expected = {"overhead": 1.0}, (0.0, 0.0)
        elif degrees < 90:
            r = 1 - degrees / 90
            positive, negatives = {"front": r, "side": 1 - r}, ("front", "side")
            expected = (-0.5 * f(4, -2.426, r), -0.5 * f(4, -2.426, 1 - r))
        else:
            r = 2 - degrees / 90
            positive, negatives = {"side": r, "back": 1 - r}, ("side", "front")
            expected = (-0.5 * f(1, -0.606, r), -0.5 * f(1, 0.967, r))
        names = ("side", "front", "back", "overhead")
        row = torch.tensor([positive.get(name, 0.0) for name in names] + [0.0, 0.0])
        torch.testing.assert_close(mix[0, b], row, atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[:, b], torch.tensor(expected), atol=1e-6, rtol=0)
        assert mix[1, b].tolist() == [0, 0, 0, 0, 0, 1]
        if elevation <= radians(60):
            assert [names[i] for i in mix[2:, b].argmax(-1)] == list(negatives)


def test_eight_views_are_the_captions_of_the_built_in_prior():
    rows, _ = texts(Eight())
    assert rows[0] == [f"p, {view_phrase(a, e)}" for a, e in zip(AZIMUTH.tolist(), ELEVATION.tolist())]
    assert set(rows[1]) == {""}


def test_the_opposite_of_a_view_is_half_a_turn_away_and_absent_overhead():
    rows, weights = texts(Eight(opposite=0.7))
    for text, azimuth, elevation, w in zip(rows[2], AZIMUTH.tolist(), ELEVATION.tolist(), weights[0].tolist()):
        assert text == f"p, {view_phrase(azimuth + math.pi, elevation)}"
        assert w == pytest.approx(0 if elevation > radians(60) else -0.7)


def test_interpolated_views_equal_the_named_ones_at_sector_centres_and_mix_linearly_between():
    centres = torch.arange(8) * (math.pi / 4)
    level = torch.zeros(8)
    nearest, smooth = Eight()(centres, level)[0], Eight(interpolate=True)
    torch.testing.assert_close(smooth(centres, level)[0], nearest, atol=1e-6, rtol=0)
    between = smooth(centres + 0.3 * math.pi / 4, level)[0][0]
    torch.testing.assert_close(between, 0.7 * nearest[0] + 0.3 * nearest[0].roll(-1, 0), atol=1e-6, rtol=0)


def rows(condition):
    """All texts [B, N, E] of a condition."""
    return [inputs["text"] for inputs in (condition.positive, condition.unconditional, *condition.negatives)]


def test_every_text_is_the_mixture_of_the_embeddings_of_its_own_view():
    rng = torch.Generator().manual_seed(0)
    directions = Four(perp_neg=1.0)
    prompts = TextConditions(torch.randn(6, 5, 3, generator=rng), directions)
    batch = prompts(VIEWS)
    for b in range(0, 97, 8):
        alone = prompts(VIEWS[b:b + 1])
        for row, own in zip(rows(batch), rows(alone)):
            torch.testing.assert_close(row[b], own[0])
        torch.testing.assert_close(batch.weights[:, b], alone.weights[:, 0])
    picked = TextConditions(prompts.embeddings, Four())(VIEWS)
    index = Four()(AZIMUTH, ELEVATION)[0].argmax(-1)
    assert torch.equal(torch.stack(rows(picked)), prompts.embeddings[index])


def test_prompts_survive_being_sent():
    prompts = TextConditions(torch.randn(19, 4, 8, generator=torch.Generator().manual_seed(0)), Eight(interpolate=True))
    sent = pickle.loads(pickle.dumps(prompts))
    assert all(map(torch.equal, rows(sent(VIEWS)), rows(prompts(VIEWS))))


@pytest.mark.parametrize("kind, cls, room", [("sd", StableDiffusion, tiny_models.TOKENS - 2), ("if", DeepFloyd, 76)])
def test_a_long_text_keeps_its_end_token_and_what_it_loses_is_told_once(kind, cls, room, tmp_path):
    prior = cls("cpu", model=str(tiny_models.make(kind, tmp_path / kind)))
    full = "a " + "red " * (room - 2) + "chair"  # all the words there is room for
    assert prior.verify([full, ""]) == []
    (line,) = prior.verify([f"{full} mushroom, front view", f"{full} view"])
    assert "too long" in line and 'not read: "mushroom, front view"' in line.replace(" ,", ",") and "\n" not in line
    cut = prior.embed([f"{full} mushroom, front view", f"{full} view"])
    torch.testing.assert_close(cut, prior.embed([full, ""])[:1].expand(2, -1, -1))


def test_an_unreadable_tokenizer_is_one_line(tmp_path):
    folder = tiny_models.make("sd", tmp_path / "sd")
    (folder / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer"):
        StableDiffusion("cpu", model=str(folder)).embed(["a chair"])


@pytest.mark.parametrize("kind, cls", [("sd", StableDiffusion), ("if", DeepFloyd)])
def test_a_missing_vocabulary_is_an_error_and_an_unknown_word_is_told(kind, cls, tmp_path):
    folder = tiny_models.make(kind, tmp_path / kind)
    assert cls("cpu", model=str(folder)).verify(["a red chair, mom, zoo"]) == [
        'the model does not know "mom", "zoo"; expect a poor result']
    shutil.rmtree(folder / "tokenizer")  # which the library takes for a tokenizer without words
    for mistake in (lambda prior: prior.embed(["a red chair"]), lambda prior: prior.verify()):
        with pytest.raises(UserError, match="has no tokenizer/"):
            mistake(cls("cpu", model=str(folder)))
