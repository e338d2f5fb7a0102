"""What the built-in models know: the words of their captions, and nothing else."""

import pytest

from mpiprop.corpus.captions import COARSE, VIEWS, caption
from mpiprop.corpus.colours import LOOKS
from mpiprop.corpus.objects import NAMES
from mpiprop.priors.closed_form import ClosedForm
from mpiprop.priors.diffusion import StableDiffusion
from mpiprop.priors.mvdream import MVDream
from mpiprop.priors.parts import Parts
from mpiprop.conditioning.text import Eight, Four
from mpiprop.priors.vocabulary import Vocabulary, words

KNOWN = Vocabulary.builtin()


def test_every_caption_of_the_corpus_is_known_and_names_a_shape():
    for shape in NAMES:
        for colour in LOOKS:
            for view in ("", *VIEWS, *COARSE):
                text = caption(shape, colour, view)
                assert not KNOWN.unknown(text) and KNOWN.names_a_shape(text)


def test_known_words_are_those_that_the_tokenizer_has_whole():
    """The tokenizer was made of the captions: what it must spell was in none of them."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Parts("builtin").tokenizer(transformers.CLIPTokenizer)
    for word in (*KNOWN.shapes, *KNOWN.colours, *KNOWN.others):
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
    for word in ("corgi", "chairs", "zebra", "violet", "dslr"):
        assert KNOWN.unknown(word) and len(tokenizer(word, add_special_tokens=False)["input_ids"]) > 1


@pytest.mark.parametrize("texts", [Eight(opposite=1.0), Four(perp_neg=1.0)])
def test_words_of_views_are_known(texts):
    assert not any(KNOWN.unknown(text) for text in texts.strings("a red car"))


@pytest.mark.parametrize(("prompt", "unknown", "shape"), [
    ("a green mushroom", [], True),
    ("A GREEN Mushroom!", [], True),
    ("the chair", [], True),
    ("a DSLR photo of a green mushroom", ["dslr", "photo"], True),
    ("a corgi", ["corgi"], False),
    ("two red chairs, and 3 chairs", ["two", "chairs"], False),
    ("a duck-shaped boat", ["shaped"], True),
    ("red", [], False),
    ("", [], False),
    ("#1 !?", [], False),
    ("ein grüner Pilz", ["ein", "grüner", "pilz"], False),
])
def test_what_a_prompt_asks_beyond_them(prompt, unknown, shape):
    assert (KNOWN.unknown(prompt), KNOWN.names_a_shape(prompt)) == (unknown, shape)


def test_the_nearest_known_word_is_named_where_there_is_one():
    assert [KNOWN.nearest(word) for word in ("chairs", "mushrom", "plane", "hamster", "corgi")] == [
        "chair", "mushroom", "airplane", None, None]
    assert KNOWN.quoted(["corgi", "chairs"]) == '"corgi", "chairs" (nearest: "chair")'


def test_a_model_of_one_object_needs_no_shape():
    assert Vocabulary((), ("red",)).names_a_shape("a corgi") and words("a-b a") == ["a", "b"]


def test_priors_say_what_they_know():
    assert StableDiffusion("cpu").vocabulary is MVDream("cpu").vocabulary is KNOWN
    assert not ClosedForm("cpu").vocabulary.unknown("a red ball, front view")
