"""Objects from pictures: what a picture becomes, what its own view is told, and runs with two terms."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from math import cos, pi, radians, sin
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from finished import flat
from PIL import Image as Pil

from mpiprop.run import program
from mpiprop.io import photograph
from mpiprop.config.loader import CONFIGS, load
from mpiprop.config.schema import Picture
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.guidance.regularizers import PENALTIES
from mpiprop.corpus.objects import thing
from mpiprop.guidance.reference import Likeness
from mpiprop.run.stage import Stage
from mpiprop.render.volume import Volume
from mpiprop.shapes.fields.hashgrid import HashGrid
from mpiprop.appearance.materials import Diffuse
from mpiprop.views.cameras import Image, orbit
from mpiprop.views.reference import Pose, Reference
from mpiprop.views.samplers import Reference as Camera
from tools import corpus

ROOT = Path(__file__).parent.parent
POSE, SMALL = Pose(0.0, 0.2, 1.8, 0.9), ["turntable.frames=1", "turntable.size=16", "mesh.resolution=8"]


def save(path: Path, pixels: np.ndarray) -> Path:
    Pil.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def card(H: int = 40, W: int = 60, top: int = 10, left: int = 30, h: int = 8, w: int = 16) -> np.ndarray:
    """A transparent picture [H, W, 4] with a rectangle, red on the left and blue on the right; green where nothing is."""
    pixels = np.zeros((H, W, 4))
    pixels[..., 1] = 200
    pixels[top:top + h, left:left + w] = (250, 0, 0, 255)
    pixels[top:top + h, left + w // 2:left + w, :3] = (0, 0, 250)
    return pixels


def test_the_object_is_brought_to_the_middle_at_its_share_of_the_picture(tmp_path: Path) -> None:
    reference = photograph.read(str(save(tmp_path / "card.png", card())), Picture(fill=0.8, size=40))
    solid = reference.rgba[..., 3] > 0.5
    rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
    assert (int(columns[0]), int(columns[-1])) == (4, 35) and (int(rows[0]), int(rows[-1])) == (12, 27)  # 16 of 20, x 2
    rgb = reference.rgba[..., :3]
    torch.testing.assert_close(rgb[20, 6], torch.tensor([250 / 255, 0, 0]))
    torch.testing.assert_close(rgb[20, 33], torch.tensor([0, 0, 250 / 255]))
    assert float(rgb[..., 1].max()) == 0, "what is transparent has no colour to give"
    assert (reference.azimuth, reference.distance, reference.depth) == (0.0, 3.8, None)


def test_a_picture_may_stay_as_it_is(tmp_path: Path) -> None:
    pixels = card(32, 32, 5, 3)
    reference = photograph.read(str(save(tmp_path / "card.png", pixels)), Picture(fill=0, size=32, elevation_deg=90 / pi))
    assert torch.equal(reference.rgba[..., 3] * 255, torch.from_numpy(pixels[..., 3]).float())
    assert reference.elevation == pytest.approx(0.5)
    wide = photograph.read(str(save(tmp_path / "wide.png", card(8, 16, 0, 0, 8, 12))), Picture(fill=0, size=16))
    assert wide.rgba[..., 3].sum(1).tolist() == [0] * 4 + [12] * 8 + [0] * 4


def test_resizing_weighs_colours_by_opacity() -> None:
    rgba = torch.zeros(2, 2, 4)
    rgba[0, 0], rgba[0, 1], rgba[1, 0] = (torch.tensor(c) for c in ((1.0, 0, 0, 1), (0, 1.0, 0, 0.5), (0, 0, 1.0, 0)))
    small = Reference(*vars(POSE).values(), rgba=rgba).resized(1).rgba[0, 0]
    torch.testing.assert_close(small, torch.tensor([1 / 1.5, 0.5 / 1.5, 0, 1.5 / 4]))


def test_depth_and_normals_beside_the_picture_go_where_it_goes(tmp_path: Path) -> None:
    pixels = card()
    save(tmp_path / "card_rgba.png", pixels)
    save(tmp_path / "card_depth.png", pixels[..., 0])
    save(tmp_path / "card_normal.png", np.where(pixels[..., 3:] > 0, [0, 128, 255], 0))  # towards the viewer and to the right
    reference = photograph.read(str(tmp_path / "card_rgba.png"), Picture(size=40))
    assert reference.depth[20, 6].item() == pytest.approx(250 / 255) and reference.depth[20, 33].item() == 0
    torch.testing.assert_close(reference.normal[20, 20], torch.tensor([1, 0, -1.0]), atol=0.01, rtol=0)
    alone = photograph.read(str(save(tmp_path / "alone.png", pixels)), Picture(size=40))
    assert alone.sha256 != reference.sha256 and torch.equal(alone.rgba, reference.rgba)
    save(tmp_path / "card_depth.png", pixels[:5, :5, 0])
    with pytest.raises(UserError, match="card_depth.png: is 5 x 5 pixels, the picture beside it 60 x 40"):
        photograph.read(str(tmp_path / "card_rgba.png"), Picture())


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Pil.fromarray(card().astype(np.uint8)).save(tmp_path / "turned.png", exif=exif)
    assert photograph.read(str(tmp_path / "turned.png"), Picture(fill=0, size=60)).rgba[..., 3].sum(1).gt(0).sum() == 16


@pytest.mark.parametrize(("name", "pixels", "message"), [
    ("none.png", None, "cannot be read: No such file or directory"),
    ("text.png", b"hello", "not a picture that can be read: cannot identify image file"),
    ("cut.png", "cut", "not a picture that can be read: "),
    ("opaque.png", card()[..., :3], r"has a background and no transparency: give an RGBA picture, or pip install 'mpiprop\[im"),
    ("full.png", np.full((8, 8, 4), 255), "has a background and no transparency"),
    ("empty.png", np.zeros((8, 8, 4)), "there is nothing in it"),
    ("deep.png", "deep", "has more than 8 bits a channel"),
])
def test_a_picture_that_does_not_do_is_one_line(tmp_path: Path, name: str, pixels: object, message: str) -> None:
    if isinstance(pixels, bytes):
        (tmp_path / name).write_bytes(pixels)
    elif isinstance(pixels, np.ndarray):
        save(tmp_path / name, pixels)
    elif pixels == "deep":
        Pil.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / name)
    elif pixels == "cut":
        save(tmp_path / name, np.random.default_rng(0).integers(0, 255, (64, 64, 4)))
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:900])
    with pytest.raises(UserError, match=message) as error:
        photograph.read(str(tmp_path / name), Picture())
    assert str(error.value).startswith(f"image={tmp_path / name}: ") and "\n" not in str(error.value)


def test_an_installed_remover_is_asked_and_its_failure_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(image: Pil.Image) -> Pil.Image:
        assert image.mode == "RGB"
        if image.width == 8:
            raise OSError("no model")
        image.putalpha(image.getchannel("R"))
        return image

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(remove=remove))
    kept = photograph.read(str(save(tmp_path / "rgb.png", card()[..., :3])), Picture(fill=0, size=60)).rgba[..., 3]
    assert int((kept > 0.5).sum()) == 8 * 8
    with pytest.raises(UserError, match=r"rembg did not remove the background \(OSError: no model\); give an RGBA picture"):
        photograph.read(str(save(tmp_path / "small.png", np.zeros((8, 8, 3)))), Picture())


# ---- the view of the picture ----

def reference(size: int = 6) -> Reference:
    rng = torch.Generator().manual_seed(1)
    rgba, depth, normal = (torch.rand(size, size, n, generator=rng) for n in (4, 1, 3))
    rgba[..., 3] = (rgba[..., 3] > 0.4).float()
    return Reference(*vars(POSE).values(), rgba=rgba, depth=depth, normal=2 * normal - 1)


def picture(size: int = 6, **given: torch.Tensor) -> Image:
    rng = torch.Generator().manual_seed(2)
    parts = {name: torch.rand(1, size, size, n, generator=rng, dtype=torch.float64)
             for name, n in (("rgb", 3), ("opacity", 1), ("depth", 1), ("normal", 3), ("behind", 3))}
    return Image(**(parts | given))


VIEWS = Camera(POSE, size=6)(0, Streams(0, 0))
ONLY = dict.fromkeys(["rgb", "mask", "depth", "depth_rel", "normal"], 0.0)


def loss(name: str, image: Image, weight: float = 1.0) -> torch.Tensor:
    return Likeness(reference(), **{**ONLY, name: weight})(image, VIEWS, 0, Streams(0, 0))[0]


def test_the_losses_are_their_definitions() -> None:
    image, ref = picture(), reference()
    m, inside = ref.rgba[..., 3:], (ref.rgba[..., 3] > 0.5)
    told = Likeness(ref, rgb=1, mask=1, depth=1, depth_rel=1, normal=1)(image, VIEWS, 0, Streams(0, 0))[1]
    wanted = ref.rgba[..., :3] * m + image.behind[0] * (1 - m)
    assert told["rgb"] == pytest.approx(float((image.rgb[0] - wanted).square().mean()))
    assert told["psnr"] == pytest.approx(-10 * np.log10(told["rgb"]))
    assert told["mask"] == pytest.approx(float((image.opacity[0] - m).square().mean()))
    ours, theirs = image.depth[0, inside, 0].numpy(), ref.depth[inside, 0].double().numpy()
    table = np.stack([theirs, np.ones_like(theirs)], 1)
    fit = table @ np.linalg.lstsq(table, ours, rcond=None)[0]
    assert told["depth"] == pytest.approx(float(np.square(ours - fit).mean()))
    assert told["depth_rel"] == pytest.approx(1 - np.corrcoef(ours, theirs)[0, 1])
    e = POSE.elevation
    axes = torch.tensor([[cos(e), 0, sin(e)], [-sin(e), 0, cos(e)], [0, -1, 0]]).double()  # towards the viewer, up, left
    seen = image.normal[0, inside] @ axes.T
    cosine = (seen * ref.normal[inside]).sum(-1) / seen.norm(dim=-1) / ref.normal[inside].norm(dim=-1)
    assert told["normal"] == pytest.approx(float(1 - cosine.mean()), rel=1e-5)


@pytest.mark.parametrize(("name", "part"), [("rgb", "rgb"), ("rgb", "behind"), ("mask", "opacity"), ("depth", "depth"),
                                            ("depth_rel", "depth"), ("normal", "normal")])
def test_the_losses_gradients_are_their_finite_differences(name: str, part: str) -> None:
    start = getattr(picture(), part)
    x = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(name, picture(**{part: x}), 3.0), x)
    for index in [(0, 0, 0, 0), (0, 2, 3, 0), (0, 5, 1, -1), (0, 4, 4, 0)]:
        step = torch.zeros_like(start)
        step[index] = 1e-4
        ahead, back = (loss(name, picture(**{part: start + sign * step}), 3.0) for sign in (1, -1))
        assert gradient[index].item() == pytest.approx(float(ahead - back) / 2e-4, rel=1e-4, abs=1e-7)


def test_weights_are_schedules_and_what_is_wanted_must_be_there() -> None:
    likeness = Likeness(reference(), rgb=[[0, 0], [10, 2]], mask=0.0)
    rgb = picture().rgb.requires_grad_()
    likeness(picture(rgb=rgb), VIEWS, 0, Streams(0, 0))[0].backward()
    assert not rgb.grad.any()
    whole, told = likeness(picture(), VIEWS, 5, Streams(0, 5))
    assert whole.item() == pytest.approx(told["rgb"]) and "mask" not in told
    with pytest.raises(UserError, match=r"depth_rel: there is no picture of it beside the image \(NAME_depth.png for"):
        Likeness(replace(reference(), depth=None), depth_rel=1.0)
    with pytest.raises(UserError, match="normal: the shape has no normals"):
        loss("normal", replace(picture(), normal=None))


def test_the_cameras_pixels_are_the_pictures() -> None:
    """A ball above and to the left in the picture pulls matter up and to the left (to -y, seen from +x)."""
    views = Camera(POSE, size=[[0, 8], [3, 16]])(3, Streams(0, 3))
    assert views.size == (16, 16) and views.unlit and len(views) == 1
    torch.testing.assert_close(views.c2w, orbit(0.0, 0.2, 1.8, 0.9, (1, 1)).c2w)
    _, directions = views.rays()
    assert directions[0, 0, 0, 1] < 0 < directions[0, 0, 15, 1] and directions[0, 0, 0, 2] > directions[0, 15, 0, 2]


# ---- smoothness ----

def test_normal_smooth_is_the_mean_square_of_neighbours_differences() -> None:
    image, total = picture(4), 0.0
    shown = (image.normal[0] / 2 + 0.5) * image.opacity[0]
    for i in range(4):
        for j in range(3):
            total += float((shown[i, j + 1] - shown[i, j]).square().sum() + (shown[j + 1, i] - shown[j, i]).square().sum())
    assert PENALTIES["normal_smooth"](image, VIEWS).item() == pytest.approx(total / 36)


def rendered(views: object, seed: int = 3, part: slice = slice(None)) -> Image:
    rng = Streams(seed, 0)
    field = HashGrid(rng, radius=0.8, levels=2, log2_table=8, base_resolution=4, hidden=8, blob_std=0.4)
    torch.nn.init.normal_(field.encoding.table, generator=rng("table"))
    some = rng.part(range(*part.indices(len(views))), len(views))
    return Volume(samples=24)(field, lambda features, *_: features, torch.ones_like, views[part], some)


def test_bent_normals_cost_and_parts_of_a_batch_cost_as_the_whole() -> None:
    views = orbit(torch.tensor([0.0, 2.0]), 0.3, 1.8, 0.8, (6, 6))
    smooth = PENALTIES["3d_normal_smooth"]
    image, still = rendered(views), lambda displacement: image.samples.normals
    assert smooth(replace(image, samples=replace(image.samples, nearby=still)), views).item() == 0
    whole = smooth(image, views)
    halves = [smooth(rendered(views, part=part), views[part]) for part in (slice(0, 1), slice(1, 2))]
    assert whole.item() > 0 and whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-5)
    moved = image.samples.nearby(0.01) - image.samples.normals
    expected = torch.stack([moved[image.samples.ray // 36 == b].abs().mean() for b in (0, 1)]).mean()
    torch.testing.assert_close(whole, expected)


def test_the_pictures_view_is_unlit_and_ambient_light_stays_in_its_range() -> None:
    material, rng = Diffuse(soft_shading=True, soft_ambient=(0.5, 1.0), ambient_only_steps=0, textureless_prob=0.0,
                            diffuse_prob=1.0), torch.Generator().manual_seed(0)
    features = torch.randn(5, 3, generator=rng)
    away = torch.tensor([[0.0, 0, -1]]).expand(5, 3)
    light = torch.tensor([[0.0, 0, 9]]).expand(5, 3)
    at = (features, torch.zeros(5, 3), away, light)
    shades = [(material(*at, tau, Streams(0, tau)) / torch.sigmoid(features)).mean().item() for tau in range(60)]
    assert 0.5 <= min(shades) < 0.55 and 0.95 < max(shades) <= 1
    assert torch.equal(material(*at, 0, Streams(0, 0), True), torch.sigmoid(features))
    assert material.wants_normals(0, Streams(0, 0)) and not material.wants_normals(0, Streams(0, 0), True)


# ---- runs ----

@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The toy configuration with a second term, the likeness to a picture; and cards to start from."""
    tree = yaml.safe_load((CONFIGS / "toy.yaml").read_text())
    tree["reference"] = {"size": 24, "distance": 1.8, "fovy_deg": 50}
    (stage,) = tree["stages"]
    stage |= {"steps": 24, "background": {"use": "Solid"}}
    stage["shape"]["normal"] = "analytic"
    stage["terms"][0]["weight"] = 0.1
    stage["terms"].append({"name": "reference", "views": {"use": "Reference", "size": [[0, 8], [12, 12]]},
                           "guidance": {"use": "Likeness"},
                           "penalties": {"orient": 1, "normal_smooth": 8, "3d_normal_smooth": 8}})
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(tree))
    save(tmp_path / "card_rgba.png", card())
    save(tmp_path / "other.png", card(h=12))
    return tmp_path / "two.yaml"


@pytest.mark.mpi
def test_two_terms_give_the_same_bits_for_every_window_and_number_of_ranks(mpirun, config: Path, tmp_path: Path) -> None:
    words = ["run", config, f"image={tmp_path / 'card_rgba.png'}", "window.threshold=0", *SMALL]
    alone = mpirun(0, *words, "window.size=1", "--out", tmp_path / "alone")
    assert alone.returncode == 0 and re.search(r"PSNR against the input image: \d+\.\d dB", alone.stdout + alone.stderr)
    assert mpirun(3, *words, "window.size=7", "--out", tmp_path / "seven").returncode == 0
    assert flat(tmp_path / "seven") == flat(tmp_path / "alone")
    assert {"reference.png", "likeness.png"} <= {path.name for path in (tmp_path / "seven").iterdir()}


def run(capsys: pytest.CaptureFixture, *words: object, out: Path | None = None, resume: bool = False) -> tuple[int, str]:
    """The exit code of a run in this process, and what it said."""
    config, *overrides = map(str, words)
    code = program.main(config, [*overrides, *SMALL], out, resume)
    told = capsys.readouterr()
    return code, told.out + told.err


def test_a_run_is_of_its_picture_wherever_it_lies(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    two, more = (config, "stages.0.steps=2"), {"out": tmp_path / "run", "resume": True}
    assert run(capsys, *two, f"image={tmp_path / 'card_rgba.png'}", **more)[0] == 0
    code, told = run(capsys, *two, f"image={tmp_path / 'other.png'}", **more)
    assert code == 2 and "was begun with another picture than" in told and told.count("\n") == 1
    (tmp_path / "card_rgba.png").rename(tmp_path / "moved.png")
    assert run(capsys, *two, f"image={tmp_path / 'moved.png'}", **more)[0] == 0
    code, told = run(capsys, tmp_path / "run/config.yaml", f"image={tmp_path / 'other.png'}", out=tmp_path / "again")
    assert code == 2 and "another picture than the one whose reference.sha256" in told


def test_pictures_are_for_those_that_use_them(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    code, told = run(capsys, config)
    assert code == 2 and f"{config} makes objects from a picture: give image=FILE" in told
    code, told = run(capsys, "toy", f"image={tmp_path / 'other.png'}")
    assert code == 2 and "toy makes objects from a prompt alone; leave image out" in told
    monkeypatch.chdir(tmp_path)
    code, told = run(capsys, config, "image=card_rgba.png", "prompt=")
    assert code == 2 and "nothing to make: give prompt" in told, "a prior reads it"
    assert run(capsys, config, "image=card_rgba.png", "stages.0.steps=1")[0] == 0
    assert (tmp_path / "runs/two-card-0/done").exists()


# ---- jobs and tools ----

def test_a_job_makes_each_picture_of_its_list_in_a_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(["a b/it's $1.png", "/x/two_rgba.png"]))
    (tmp_path / "list.txt").write_text("one.png\n\ntwo.png\n")
    script = f'. {ROOT}/jobs/run.sh; attempt() {{ printf "%s|" "$@"; echo; }}; objects image zero123 "$@"'

    def attempts(*words: object, **env: str) -> list[list[str]]:
        env = os.environ | {"MPIPROP": str(ROOT), "VENV": sys.prefix, "SLURM_JOB_ID": "1"} | env
        told = subprocess.check_output(["bash", "-c", script, "job", *map(str, words)], text=True, env=env)
        return [line.split("|")[:-1] for line in told.splitlines()]

    listed = attempts("--images", tmp_path / "list.json", "seed=1", "reference.elevation_deg=20")
    assert [words[1:] for words in listed] == [["zero123", f"image={name}", "seed=1", "reference.elevation_deg=20"]
                                               for name in ("a b/it's $1.png", "/x/two_rgba.png")]
    assert [words[0][:-7] for words in listed] == ["runs/zero123-it-s-1-png", "runs/zero123-two-rgba-png"]
    assert attempts("--images", tmp_path / "list.txt", "demo/zero123", SLURM_ARRAY_TASK_ID="2") == [
        attempts("two.png", "demo/zero123")[0]] == [attempts("demo/zero123", IMAGE="two.png")[0]]


def test_a_picture_of_the_corpus_is_where_the_camera_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The silhouette that the corpus draws is that of the object's own points under the program's cameras."""
    words = ["duck", "yellow", str(tmp_path / "duck.png"), "--azimuth", "40", "--size", "48"]
    monkeypatch.setattr(sys, "argv", ["corpus", *words])
    corpus.main()
    alpha = photograph.read(str(tmp_path / "duck.png"), Picture(fill=0, size=48)).rgba[..., 3]
    views = orbit(radians(40), radians(15), 1.8, radians(49.1), (48, 48))
    origins, directions = (part.reshape(-1, 3).T for part in views.rays())
    t = torch.linspace(1.1, 2.5, 300)[:, None, None]
    inside = thing("duck").distance((origins + t * directions).transpose(0, 1).reshape(3, -1))
    hit = (inside.view(300, -1) < 0).any(0).view(48, 48)
    assert 100 < int(hit.sum()) < 1500 and float((hit.float() - alpha).abs().mean()) < 0.02


def test_the_configuration_is_zero_1_to_3s() -> None:
    run = load("zero123", ["image=photo.png"])
    stage = Stage(run, 0, torch.device("cpu"))
    assert stage.scene.layout.D == 12_612_464 and run.subject == "photo" and not run.reads_prompt
    sizes = {tau: [(len(views), *views.size) for views in (each(tau, Streams(0, tau)) for each in stage.views)]
             for tau in (0, 599, 600, 900)}
    assert sizes[0] == sizes[599] == [(16, 64, 64), (1, 128, 128)]
    assert sizes[600] == [(16, 128, 128), (1, 256, 256)] and sizes[900] == [(10, 256, 256), (1, 512, 512)]
    novel = stage.views[0](3, Streams(0, 3))
    torch.testing.assert_close(novel.c2w[:, :3, 3].norm(dim=1), torch.full((16,), 3.8))
    assert radians(-10) <= novel.elevation.min() and novel.elevation.max() <= radians(80) and not novel.unlit
