"""Measures against planted answers and closed forms, the judge against the reference implementations of its parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TOKENS, _clip_tokenizer

from mpiprop import evaluate as ev
from mpiprop.core.errors import UserError

RECIPES = {
    "crop": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "resample": 3},
    "plain": {"size": {"height": 24, "width": 24}, "do_center_crop": False, "resample": 2},
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=RECIPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP model, in a folder such as the hub's."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("clip") / request.param
    _clip_tokenizer(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = small | ids | {"vocab_size": 128, "max_position_embeddings": TOKENS}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=small | {"image_size": 24, "patch_size": 8},
                             projection_dim=12)).save_pretrained(folder)
    CLIPImageProcessorPil(**RECIPES[request.param]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(folder: Path) -> ev.Judge:
    return ev.Judge(folder)


def test_r_precision_of_planted_answers() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.8], [0.1, 0.2, 0.7], [0.1, 0.6, 0.5]])
    assert ev.r_precision(similarity, torch.tensor([0, 1, 2, 1])) == 0.75
    assert ev.r_precision(torch.tensor([[0.5, 0.5]]), torch.tensor([0])) == 0  # a tie counts against


def test_frechet_of_two_gaussians() -> None:
    """|m - m'|^2 + sum (s - s')^2 in the axes of Gaussians that share them; features with exactly these moments."""
    E = 4
    corners = torch.tensor(np.array(np.meshgrid(*[[-1.0, 1.0]] * E)).reshape(E, -1).T)
    corners = corners / corners.std(0)
    rotation = torch.linalg.qr(random(E, E).double())[0]
    s, s_, m, m_ = random(4, E, seed=1).double() + 0.5
    a, b = ((corners * scale + mean) @ rotation for scale, mean in ((s, m), (s_, m_)))
    assert ev.frechet(a, b) == pytest.approx(float(((m - m_) ** 2).sum() + ((s - s_) ** 2).sum()), rel=1e-9)


def test_frechet_equals_the_definition_and_vanishes_on_itself() -> None:
    from scipy.linalg import sqrtm

    a, b = random(60, 8).double(), random(50, 8, seed=1).double() ** 2
    x, y = a.numpy(), b.numpy()
    S, S_ = np.cov(x.T), np.cov(y.T)
    truth = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(S + S_ - 2 * sqrtm(S @ S_).real)
    assert ev.frechet(a, b) == pytest.approx(truth, rel=1e-8)
    few = random(5, 8)  # a singular covariance
    assert ev.frechet(a, a) == pytest.approx(0, abs=1e-9) and ev.frechet(few, few) == pytest.approx(0, abs=1e-7)
    with pytest.raises(UserError, match="at least two"):
        ev.frechet(a, b[:1])


@pytest.mark.parametrize("H, W", [(64, 48), (24, 24), (20, 31)])
def test_preparation_is_the_image_processors(judge: ev.Judge, H: int, W: int) -> None:
    from transformers import CLIPImageProcessorPil

    pixels = (50 + 150 * random(H, W, 3)).byte().numpy()  # the reference clips what overshoots, row by row
    truth = CLIPImageProcessorPil.from_pretrained(judge.name)(Image.fromarray(pixels), return_tensors="pt").pixel_values
    mine = judge.prepare(torch.from_numpy(pixels)[None] / 255)
    assert mine.shape == truth.shape == (1, 3, 24, 24)
    assert (mine - truth).abs().max() < 1.5 / 255 / 0.26  # one step of eight bits, normalised


def test_judge_gives_the_models_features(judge: ev.Judge) -> None:
    """The similarities are those of CLIPModel's own forward pass; images in chunks, texts padded or not."""
    from transformers import CLIPTokenizer

    images, texts = random(ev.CHUNK + 3, 24, 24, 3), ["a red chair", "a blue mushroom, front view", ""]
    tokens = CLIPTokenizer.from_pretrained(judge.name)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        truth = judge.model(pixel_values=judge.prepare(images), **tokens)
    torch.testing.assert_close(judge.images(images), truth.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(judge.texts(texts), truth.text_embeds, atol=1e-5, rtol=0)
    assert judge.texts(["a red chair " * 40]).isfinite().all()  # cut at the model's length


def test_clip_similarity_is_the_mean_cosine() -> None:
    images = torch.tensor([[1.0, 0], [0, 1.0], [0.6, 0.8]])
    assert ev.clip_similarity(images, torch.tensor([0.0, 1.0])) == pytest.approx(0.6)


class Planted:
    """A judge that reads an image's first pixel as its feature, and a text's first letter as a colour."""

    name = "planted"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0]

    def texts(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(3)[["rgb".index(text[0]) for text in texts]]


def test_evaluation_of_planted_objects(tmp_path: Path) -> None:
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    turn = torch.stack([red, red, red, green])[:, None, None].expand(4, 2, 2, 3)
    objects = [("red", turn), ("green", turn)]
    result = ev.evaluate(objects, ["green", "blue", "green"], Planted())
    assert (result.prompts, result.images, result.fid) == (3, 8, None)
    assert (result.similarity, result.r_precision, result.r_precision_objects) == (0.5, 0.5, 0.5)
    assert [(s.similarity, s.r_precision, s.retrieved) for s in result.objects] == [
        (0.75, 0.75, "red"), (0.25, 0.25, "red")]
    assert json.loads(result.to_json())["objects"][1]["retrieved"] == "red"
    assert "all objects" in str(result) and "CLIP-FID" not in str(result)
    for i, image in enumerate(torch.cat([turn, turn])):
        Image.fromarray((image * 255).byte().numpy()).save(tmp_path / f"{i}.png")
    again = ev.evaluate(objects, ["green", "blue"], Planted(), tmp_path)
    assert again.fid == pytest.approx(0, abs=1e-9) and "CLIP-FID" in str(again)


def test_reference_without_pictures_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures"):
        ev.reference_features(tmp_path, Planted())
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UserError, match="broken.png"):
        ev.reference_features(tmp_path, Planted())


def test_transparent_pictures_are_seen_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)).save(tmp_path / "a.png")
    assert ev.picture(tmp_path / "a.png").tolist() == [[[1, 1, 1], [1, 0, 0]]]


def test_prompts_are_read_from_lines_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red chair\n\n  a green car \n")
    (tmp_path / "a.json").write_text('{"train": ["a red chair"], "test": ["a green car"]}')
    assert ev.read_prompts(tmp_path / "a.txt") == ev.read_prompts(tmp_path / "a.json") == ["a red chair", "a green car"]
    (tmp_path / "empty.txt").write_text("\n")
    for name in ("empty.txt", "missing.txt"):
        with pytest.raises(UserError, match=name):
            ev.read_prompts(tmp_path / name)


def test_no_judge_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CLIP model"):
        ev.Judge(tmp_path)


def test_builtin_judge_knows_its_prompts() -> None:
    if not (ev.BUILTIN / "config.json").exists():
        pytest.skip("the built-in judge is not there")
    prompts = ev.builtin_prompts()
    assert {"a green mushroom", "an orange chair"} <= set(prompts) and len(prompts) == len(set(prompts))
    texts = ev.Judge().texts(prompts)
    assert (texts @ texts.T).fill_diagonal_(0).max() < 0.999  # all told apart
