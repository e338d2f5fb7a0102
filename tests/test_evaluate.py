"""Measures against planted answers and closed forms, the judge against the library's own parts, a protocol against a naive
reading of it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from tiny_models import TOKENS, clip_tokenizer
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

import mpiprop
from mpiprop.run import checkpoint, outputs
from mpiprop.config import loader
from mpiprop.config.prompts import read_prompts
from mpiprop.cli.main import dispatch
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.corpus.truth import truth as solid_of
from mpiprop.io.mesh import extract
from mpiprop.metrics import pictures, reference
from mpiprop.metrics.judge import CHUNK, Judge
from mpiprop.metrics.measures import Moments, frechet, measure, r_precision
from mpiprop.metrics.truth import likeness
from mpiprop.run.stage import Stage
from mpiprop.views.cameras import turntable

SMALL = ["stages.0.steps=6", "turntable={frames: 2, size: 16}", "mesh.resolution=8", "preview.every_s=0"]

RECIPES = {
    "crop": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "resample": 3},
    "plain": {"size": {"height": 24, "width": 24}, "do_center_crop": False, "resample": 2},
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=RECIPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP model, in a folder such as the hub's."""
    from transformers import CLIPConfig

    folder = tmp_path_factory.mktemp("clip") / request.param
    clip_tokenizer(folder)
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
def judge(folder: Path) -> Judge:
    return Judge(folder)


def test_r_precision_of_planted_answers() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.8], [0.1, 0.2, 0.7], [0.1, 0.6, 0.5]])
    assert r_precision(similarity, torch.tensor([0, 1, 2, 1])) == 0.75
    assert r_precision(torch.tensor([[0.5, 0.5]]), torch.tensor([0])) == 0  # a tie counts against


def test_frechet_of_two_gaussians() -> None:
    """|m - m'|^2 + sum (s - s')^2 in the axes of Gaussians that share them; features with exactly these moments."""
    E = 4
    corners = torch.tensor(np.array(np.meshgrid(*[[-1.0, 1.0]] * E)).reshape(E, -1).T)
    corners = corners / corners.std(0)
    rotation = torch.linalg.qr(random(E, E).double())[0]
    s, s_, m, m_ = random(4, E, seed=1).double() + 0.5
    a, b = (Moments.of((corners * scale + mean) @ rotation) for scale, mean in ((s, m), (s_, m_)))
    assert frechet(a, b) == pytest.approx(float(((m - m_) ** 2).sum() + ((s - s_) ** 2).sum()), rel=1e-9)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """The definition of the Frechet distance, from all features at once."""
    S, S_ = np.cov(x.T), np.cov(y.T)
    root = sqrtm(S).real  # S S' and S^1/2 S' S^1/2 have the same eigenvalues; of the latter singular ones have a root, too
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(S + S_ - 2 * sqrtm(root @ S_ @ root).real)


def test_frechet_equals_the_definition_and_vanishes_on_itself() -> None:
    a, b = random(60, 8).double(), random(50, 8, seed=1).double() ** 2
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(distance(a.numpy(), b.numpy()), rel=1e-8)
    few = Moments.of(random(5, 8))  # a singular covariance
    assert frechet(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-9)
    assert frechet(few, few) == pytest.approx(0, abs=1e-7)
    with pytest.raises(UserError, match="at least two"):
        frechet(Moments.of(a), Moments.of(b[:1]))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    x = random(50, 6).double() + 100  # a mean that is large beside the deviations
    parts, whole = Moments.of(x[:1]) + Moments.of(x[1:20]) + Moments.of(x[20:]), Moments.of(x)
    assert parts.count == whole.count == 50
    np.testing.assert_allclose(parts.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts.scatter / 49, np.cov(x.numpy().T), rtol=1e-9)


def test_judge_gives_the_models_features(judge: Judge) -> None:
    """The similarities are those of CLIPModel's own forward pass on its own preparation; pictures in chunks of any size."""
    images = [(255 * random(20 + i % 3, 31, 3, seed=i)).byte().numpy() for i in range(CHUNK + 3)]
    texts = ["a red chair", "a blue mushroom, front view", ""]
    tokens = CLIPTokenizer.from_pretrained(judge.name)(texts, padding=True, return_tensors="pt")
    processor, model = CLIPImageProcessorPil.from_pretrained(judge.name), CLIPModel.from_pretrained(judge.name).eval()
    pixels = torch.cat([processor(Image.fromarray(image), return_tensors="pt").pixel_values for image in images])
    with torch.no_grad():
        truth = model(pixel_values=pixels, **tokens)
    found = torch.nn.functional.normalize(judge.features(images), dim=-1)
    torch.testing.assert_close(found, truth.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(judge.texts(texts), truth.text_embeds, atol=1e-5, rtol=0)
    assert judge.texts(["a red chair " * 40]).isfinite().all()  # cut at the model's length


def test_measures_of_planted_objects() -> None:
    """Features are the colours themselves: three views of four are red."""
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    turn = torch.stack([red, red, red, green])
    result = measure([("red", turn), ("green", turn)], ["red", "green", "blue"], torch.eye(3))
    assert (result.images, result.similarity, result.r_precision, result.r_precision_objects) == (8, 0.5, 0.5, 0.5)
    assert [(s.similarity, s.r_precision, s.retrieved) for s in result.objects] == [(0.75, 0.75, "red"), (0.25, 0.25, "red")]


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "album/deep").mkdir(parents=True)
    for i in range(CHUNK + 5):
        pixels = (255 * random(30, 40, 3, seed=i)).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "album" / ("deep" if i % 2 else "") / f"{i:03d}.png")
    return tmp_path / "album"


def test_statistics_of_a_reference_are_kept_until_it_changes(album: Path, judge: Judge) -> None:
    said: list[str] = []
    first = reference.moments(album, judge, said.append)
    assert "to read" in said[0] and "kept in" in said[1]
    again = reference.moments(album, judge, said.append)
    assert "statistics from" in said[2] and len(said) == 3
    assert again.count == first.count == CHUNK + 5 and np.array_equal(again.scatter, first.scatter)
    every = judge.features([pictures.read(path) for path in sorted(album.rglob("*.png"))]).double().numpy()
    np.testing.assert_allclose(first.scatter / (len(every) - 1), np.cov(every.T), atol=1e-9)
    os.utime(album / "000.png", ns=(0, 0))
    reference.moments(album, judge, said.append)
    assert "to read" in said[3]
    for file in (album.parent / "cache/mpiprop").iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    assert np.array_equal(reference.moments(album, judge, said.append).mean, first.mean) and "to read" in said[5]


def test_reference_without_pictures_is_the_users_mistake(tmp_path: Path, judge: Judge) -> None:
    with pytest.raises(UserError, match="no pictures"):
        reference.moments(tmp_path, judge, print)
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UserError, match="broken.png"):
        reference.moments(tmp_path, judge, print)


def test_transparent_pictures_are_seen_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)).save(tmp_path / "a.png")
    assert pictures.read(tmp_path / "a.png").tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_prompts_are_read_from_lines_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red chair\n\n  a green car \n")
    (tmp_path / "a.json").write_text('{"train": ["a red chair"], "test": ["a green car"]}')
    assert all(read_prompts(str(tmp_path / name)) == ["a red chair", "a green car"] for name in ("a.txt", "a.json"))
    (tmp_path / "empty.txt").write_text("\n")
    for name in ("empty.txt", "missing.txt"):
        with pytest.raises(UserError, match=name):
            read_prompts(str(tmp_path / name))


def test_no_judge_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CLIP model"):
        Judge(tmp_path)
    with pytest.raises(UserError, match="owner/name"):
        Judge("owner/name")


def test_a_judge_of_pickled_weights_is_the_same(folder: Path, judge: Judge, tmp_path: Path) -> None:
    """The hub's openai/clip-vit-base-patch32 has no safetensors."""
    shutil.copytree(folder, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(judge.model.state_dict(), tmp_path / "pickled/pytorch_model.bin")
    pickled, image = Judge(tmp_path / "pickled"), (255 * random(30, 40, 3)).byte().numpy()
    assert pickled.fingerprint() == judge.fingerprint()
    torch.testing.assert_close(pickled.features([image]), judge.features([image]), atol=1e-5, rtol=0)


def test_builtin_judge_knows_its_prompts() -> None:
    known = read_prompts("builtin")
    assert {"a green mushroom", "an orange chair"} <= set(known) and len(known) == len(set(known))
    texts = Judge().texts(known)
    assert (texts @ texts.T).fill_diagonal_(0).max() < 0.999  # all told apart


# ---- the command ----

@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "toy-red"
    assert dispatch(["run", "toy", "prompt=a red chair", *SMALL, "--out", str(folder)]) == 0
    return folder


def renders(run: Path, views: int, elevation: float, size: int) -> Iterator[Image.Image]:
    """A run's newest state from even azimuths at an elevation (degrees), at its own evaluation distance and field of view."""
    kept = checkpoint.load(run / "window.h5").window.x.theta
    stage = Stage(loader.load(str(run / "config.yaml")), 0, torch.device("cpu"))
    like = stage.views[0].turntable(1, (1, 1))
    cameras = turntable(views, np.radians(elevation), like.distance.item(), like.fovy.item(), (size, size))
    for i in range(views):
        with torch.no_grad():
            rgb = stage.scene.load(kept, stage.T).render(cameras[i:i + 1], stage.T, needs=()).rgb[0].clamp(0, 1)
        yield Image.fromarray((rgb.numpy() * 255).round().astype(np.uint8))


def test_a_protocol_end_to_end_equals_a_naive_reading_of_it(run: Path, album: Path, capsys: pytest.CaptureFixture) -> None:
    """DreamPropeller's: azimuths all around at 12 degrees, 512 pixels, B/32's features of whole renders for retrieval, those of
    random 300-pixel squares of each, enlarged to 512, for CLIP-FID. View by view, picture by picture, with the libraries."""
    views, size, seed = 6, 48, 3
    words = ["--protocol", "dreampropeller", "--views", views, "--size", size, "--seed", seed, "--clip", "builtin",
             "--reference", album, "--device", "cpu", "--json"]
    assert dispatch(["evaluate", str(run), *map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)

    where = Path(mpiprop.__file__).parent / "weights/judge"
    processor, model = CLIPImageProcessorPil.from_pretrained(where), CLIPModel.from_pretrained(where).eval()

    def feature(image: Image.Image) -> torch.Tensor:
        with torch.no_grad():
            out = model.get_image_features(processor(image, return_tensors="pt").pixel_values)
        return getattr(out, "pooler_output", out)[0].double()

    whole, cuts = [], []
    for i, render in enumerate(renders(run, views, 12, size)):
        image = render.resize((512, 512), Image.Resampling.BICUBIC)
        whole.append(feature(image))
        corners = torch.randint(512 - 300, (20, 2), generator=Streams(seed, i)("evaluate.crops"))
        for x, y in corners.tolist():
            cuts.append(feature(image.crop((x, y, x + 300, y + 300)).resize((512, 512), Image.Resampling.BICUBIC)))

    known = read_prompts("builtin")
    tokens = CLIPTokenizer.from_pretrained(where)(known, padding="max_length", max_length=model.config.text_config
                                                  .max_position_embeddings, return_tensors="pt")
    with torch.no_grad():
        texts = model.get_text_features(**tokens)
    texts = torch.nn.functional.normalize(getattr(texts, "pooler_output", texts).double(), dim=-1)
    cosine = torch.nn.functional.normalize(torch.stack(whole), dim=-1) @ texts.T
    own = known.index("a red chair")
    theirs = torch.stack([feature(Image.open(path)) for path in sorted(album.rglob("*.png"))])
    fid = distance(torch.stack(cuts).numpy(), theirs.numpy())

    (score,) = found["objects"]
    assert score["similarity"] == pytest.approx(float(cosine[:, own].mean()), abs=1e-5)
    assert score["r_precision"] == float((cosine.argmax(1) == own).double().mean())
    assert score["retrieved"] == known[int(cosine.mean(0).argmax())]
    assert found["fid"] == pytest.approx(fid, rel=1e-4)
    told = {"protocol": "dreampropeller", "judge": "builtin", "seed": seed, "device": "cpu", "images": views,
            "reference": str(album), "reference_pictures": CHUNK + 5}
    assert {name: found[name] for name in told} == told
    assert (found["settings"]["views"], found["settings"]["size"], found["settings"]["crops"]) == (views, size, 20)
    about = {"run": str(run), "configuration": "toy", "prompt": "a red chair", "window": 7, "step": 6, "finished": True}
    assert {name: score[name] for name in about} == about


def test_scaledreamer_looks_at_whole_renders_resized_bilinearly(run: Path, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture) -> None:
    """Here of a run that is not finished."""
    folder = tmp_path / "unfinished"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("done", "views"))
    words = ["evaluate", str(folder), "--protocol", "scaledreamer", "--views", "3", "--size", "90", "--clip", "builtin"]
    assert dispatch([*words, "--json"]) == 0
    found, judge = json.loads(capsys.readouterr().out), Judge()
    pixels = np.stack([np.array(image.resize((64, 64), Image.Resampling.BILINEAR)) for image in renders(folder, 3, 15, 90)])
    with torch.no_grad():
        out = judge.model.get_image_features(torch.from_numpy(pixels).movedim(-1, 1) / 127.5 - 1)
    cosine = torch.nn.functional.normalize(getattr(out, "pooler_output", out), dim=-1) @ judge.texts(["a red chair"]).T
    (score,) = found["objects"]
    assert score["similarity"] == pytest.approx(float(cosine.mean()), abs=1e-5) and not score["finished"]
    assert (found["fid"], found["settings"]["elevation_deg"]) == (None, 15)
    assert dispatch(words) == 0
    assert "not finished, at step 6 of 6" in (out := capsys.readouterr().out) and "not to be compared" in out
    with pytest.raises(UserError, match="give --protocol, which renders"):
        dispatch(["evaluate", str(folder)])


def test_runs_are_told_apart_and_unknown_words_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "toy-ball"
    assert dispatch(["run", "toy", "prompt=a red corgi", "seed=1", *SMALL, "--out", str(other)]) == 0
    capsys.readouterr()
    assert dispatch(["evaluate", str(run), str(other)]) == 0
    out = capsys.readouterr().out
    assert str(run) in out and str(other) in out and "configuration" in out
    assert 'does not know "corgi"' in out and "mean little" in out
    with pytest.raises(UserError, match='toy-ball: --truth: the corpus has no true solid for "a red corgi"'):
        dispatch(["evaluate", str(run), str(other), "--truth"])


def test_runs_are_held_against_the_true_solid(run: Path, capsys: pytest.CaptureFixture) -> None:
    """The table's and the JSON's figures are those of the solid of the prompt, each once."""
    assert dispatch(["evaluate", str(run), "--truth", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["objects"][0]["truth"]
    stage, newest = outputs.newest(run)
    mesh = extract(stage.scene.load(newest.window.x.theta, stage.T), say=lambda line: None, resolution=8)
    true = likeness(mesh.vertices, mesh.faces, solid_of("a red chair"))
    assert (found["iou"], found["chamfer"], found["alignment"]["yaw"]) == pytest.approx(
        (true.iou, true.chamfer, true.alignment.yaw), rel=1e-6)
    assert dispatch(["evaluate", str(run), "--truth"]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[-4:] == [f"{found['iou']:.3f}", f"{found['chamfer']:.4f}", f"{found['psnr_db']:.2f}", f"{found['ssim']:.3f}"]


@pytest.mark.parametrize("words, says", [
    (["--views", "3"], "--views belongs to a protocol"), (["--clip", "/nowhere"], "no folder /nowhere"),
    (["--protocol", "scaledreamer", "--reference", "x"], "has no CLIP-FID"), (["--prompts", "/nowhere.txt"], "/nowhere.txt"),
    (["--reference", "/nowhere"], "no pictures")])
def test_mistakes_are_one_line(run: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        dispatch(["evaluate", str(run), *words])
    assert "\n" not in str(caught.value)


def test_objects_of_a_generator_are_judged_by_their_views(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The shipped one; each view of a strip counts alone."""
    prompts = ["a red duck", "a golden castle"]
    assert dispatch(["generate", "builtin", *prompts, "--format", "ply", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert dispatch(["evaluate", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    judge = Judge("builtin")
    texts = judge.texts(found["prompts"])
    for told, prompt in zip(found["objects"], sorted(prompts), strict=True):
        strip = Image.open(tmp_path / f"{prompt.replace(' ', '-')}.views.png")
        views = [np.asarray(strip.crop((x, 0, x + 96, 96))) for x in range(0, 384, 96)]
        nearest = [found["prompts"][i] for i in (judge.features(views) @ texts.T).argmax(1)]
        assert told["prompt"] == prompt and told["r_precision"] == nearest.count(prompt) / 4 >= 0.75
        assert told["configuration"] == "demo/hyper-ingp"
    for words in (["--truth"], ["--protocol", "dreampropeller"]):
        with pytest.raises(UserError, match=f"leave out {words[0]}"):
            dispatch(["evaluate", str(tmp_path), *words])
    (tmp_path / "a-red-duck.json").unlink()
    with pytest.raises(UserError, match="a-red-duck.json: does not say"):
        dispatch(["evaluate", str(tmp_path)])
