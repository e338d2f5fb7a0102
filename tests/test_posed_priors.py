"""Priors that know cameras: against their networks written out, their authors' formats, and the definition of a pose."""

import math
import pickle
from pathlib import Path

import asking
import pytest
import tiny_models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.guidance.sds import SDS
from mpiprop.priors.diffusion import StableDiffusion
from mpiprop.priors.lora import Lora
from mpiprop.conditioning.camera import Cameras
from mpiprop.conditioning.picture import FromPicture, PictureConditions
from mpiprop.conditioning.text import Plain, TextConditions
from mpiprop.priors.mvdream import Joined, MVDream
from mpiprop.priors.zero123 import Zero123
from mpiprop.run.stage import Stage
from mpiprop.views.cameras import Image, orbit
from mpiprop.views.reference import Reference
from mpiprop.views.samplers import Random
from tools import corpus
from tools.dataset import draw_shots
from tools.tracer import Shots, toward

STREAMS = Streams(0, 0)
AROUND = math.pi / 2 * torch.arange(4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_models.make(kind, root / kind) for kind in ("zero123", "mvdream", "sd")}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=STREAMS("test"))


def picture(size: int = 16) -> Reference:
    rgba = torch.rand(size, size, 4, generator=STREAMS("picture"))
    return Reference(0.4, 0.3, 1.9, 0.8, rgba)


def error(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zero123(folder: Path, **keys) -> Zero123:
    return Zero123("cpu", model=str(folder), resolution=16, **keys)


def mvdream(folder: Path, **keys) -> MVDream:
    return MVDream("cpu", model=str(folder), resolution=16, **keys)


# ---- a picture and a pose ----

def shown_to(prior: Zero123, shown: Reference) -> PictureConditions:
    """A picture as the prior is told of it."""
    return FromPicture(shown).encode(prior, "", {})


def test_a_pose_is_zero123s_of_the_cameras_positions(folders):
    """Spherical coordinates of the positions in a right-handed world with z up: polar angle from +z, azimuth from +x to +y."""
    prior, shown = zero123(folders["zero123"]), picture()
    views = orbit(torch.tensor([0.4, 1.5, -2.0, 3.0]), torch.tensor([0.3, -0.2, 1.2, 0.0]), torch.tensor([1.9, 2.5, 1.0, 1.9]),
                  0.8, (8, 8))
    weight, bias = projection(folders["zero123"])
    conditions = shown_to(prior, shown)

    def spherical(x: float, y: float, z: float) -> tuple[float, float, float]:
        r = math.sqrt(x * x + y * y + z * z)
        return math.acos(z / r), math.atan2(y, x), r

    theta0, azimuth0, r0 = spherical(*orbit(0.4, 0.3, 1.9, 0.8, (8, 8)).c2w[0, :3, 3].tolist())
    text = conditions(views).positive["text"]
    for b in range(4):
        theta, azimuth, r = spherical(*views.c2w[b, :3, 3].tolist())
        pose = torch.tensor([theta - theta0, math.sin(azimuth - azimuth0), math.cos(azimuth - azimuth0), r - r0])
        expected = F.linear(torch.cat([embedding(folders["zero123"], shown), pose]), weight, bias)
        torch.testing.assert_close(text[b, 0], expected, atol=1e-5, rtol=1e-5)
    assert (text[0, 0] - text[1, 0]).abs().max() > 0.1
    stable = shown_to(zero123(folders["zero123"], pose="stable"), shown)(views).positive["text"]
    pose = torch.tensor([0.0, 0.0, 1.0, math.pi / 2 - 0.3])
    expected = F.linear(torch.cat([embedding(folders["zero123"], shown), pose]), weight, bias)
    torch.testing.assert_close(stable[0, 0], expected, atol=1e-5, rtol=1e-5)


def projection(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    found = load_file(folder / "cc_projection" / "diffusion_pytorch_model.safetensors")
    return found["projection.weight"], found["projection.bias"]


def on_white(shown: Reference) -> torch.Tensor:
    rgba = shown.rgba.permute(2, 0, 1)[None]
    return rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:])


def embedding(folder: Path, shown: Reference) -> torch.Tensor:
    from transformers import CLIPVisionModelWithProjection

    eye = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval()
    rgb = F.interpolate(on_white(shown), (12, 12), mode="bicubic", align_corners=True)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        return eye(pixel_values=(rgb - mean[:, None, None]) / std[:, None, None]).image_embeds[0]


def test_a_picture_is_shown_to_the_network_as_zero123_does(folders):
    """One call for both rows says what two calls of the network say; the picture's latents are the mode, not scaled."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    prior, views = zero123(folders["zero123"]), orbit(torch.tensor([0.5, -1.0]), 0.2, 1.8, 0.8, (8, 8))
    condition, x_t, t = shown_to(prior, picture())(views), noise(2, 4, 8, 8), torch.tensor([100, 700])
    unet = UNet2DConditionModel.from_pretrained(folders["zero123"] / "unet").eval()
    vae = AutoencoderKL.from_pretrained(folders["zero123"] / "vae").eval()
    with torch.no_grad():
        mode = vae.encode(2 * on_white(picture()) - 1).latent_dist.mode()
        cond = unet(torch.cat([x_t, mode.expand(2, -1, -1, -1)], 1), t, condition.positive["text"]).sample
        uncond = unet(torch.cat([x_t, torch.zeros_like(x_t)], 1), t, torch.zeros(2, 1, tiny_models.WIDTH)).sample
    inputs = asking.stacked(condition.positive, condition.unconditional)
    rows = prior.eps(x_t.repeat(2, 1, 1, 1), t.repeat(2), **inputs)
    torch.testing.assert_close(rows, torch.cat([cond, uncond]), atol=1e-5, rtol=1e-5)
    guided = asking.guided(SDS(prior, shown_to(prior, picture()), scale=3.0, cfg="B"), x_t, t, views)
    torch.testing.assert_close(guided, uncond + 3 * (cond - uncond), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_zero123s_checkpoint_says_what_its_folder_says(suffix, folders, tmp_path):
    """The weights under the names of its authors' code, among other numbers of theirs."""
    folder = folders["zero123"]
    state = tiny_models.original(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    weight, bias = projection(folder)
    state = {f"model.diffusion_model.{name}": value for name, value in state.items()}
    state |= {"cc_projection.weight": weight, "cc_projection.bias": bias, "betas": torch.zeros(3)}
    path = write(state, tmp_path / f"zero{suffix}")
    ours, theirs = zero123(folder), zero123(path, base=str(folder))
    views, x_t, t = orbit(torch.tensor([0.5, -1.0]), 0.2, 1.8, 0.8, (8, 8)), noise(2, 4, 8, 8), torch.full((2,), 300)
    outs = [prior.eps(x_t, t, **shown_to(prior, picture())(views).positive) for prior in (ours, theirs)]
    assert outs[0].std() > 0
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)


def write(state: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"state_dict": state, "global_step": 7}, path)
    return path


# ---- four views at once ----

def test_joined_attention_is_a_loop_over_groups_and_heads():
    from diffusers.models.attention_processor import Attention

    with torch.random.fork_rng():
        torch.manual_seed(0)
        attn = Attention(query_dim=8, heads=2, dim_head=4).eval()
    x = noise(8, 5, 8)  # two groups of four views of five positions
    expected = torch.empty_like(x)
    with torch.no_grad():
        for group in range(2):
            tokens = torch.cat([x[4 * group + view] for view in range(4)])
            q, k, v = (layer(tokens) for layer in (attn.to_q, attn.to_k, attn.to_v))
            heads = [F.softmax(q[:, h] @ k[:, h].T / 2, -1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
            expected[4 * group:4 * group + 4] = attn.to_out[0](torch.cat(heads, -1)).view(4, 5, 8)
        torch.testing.assert_close(Joined()(attn, x), expected, atol=1e-6, rtol=1e-5)
        alone, text = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4).eval(), noise(8, 3, 6)
        torch.testing.assert_close(Joined()(alone, x, text), alone(x, text))  # words are every view's own


def test_a_camera_is_its_matrix_with_a_unit_translation(folders):
    views = orbit(AROUND + 0.2, 0.3, 1.7, 0.8, (8, 8))
    prior = mvdream(folders["mvdream"])
    condition = Cameras(negative="a chair").encode(prior, "a red chair", {})(views)
    camera = condition.positive["camera"]
    assert camera.shape == (4, 16) and torch.equal(condition.unconditional["camera"], camera)
    expected = views.c2w.clone()
    expected[:, :3, 3] /= 1.7
    torch.testing.assert_close(camera.view(4, 4, 4), expected)
    text = prior.embed(["a red chair", "a chair"])
    for inputs, row in zip((condition.positive, condition.unconditional), text):
        assert torch.equal(inputs["text"], row.expand(4, -1, -1))


def test_views_see_those_of_their_group_alone(folders):
    """One call for two groups, with and without words, says what a call for each says; within a group, each view tells."""
    prior, views = mvdream(folders["mvdream"]), orbit(torch.cat([AROUND, AROUND + 0.5]), 0.2, 1.8, 0.8, (8, 8))
    sds = SDS(prior, Cameras().encode(prior, "a red chair", {}), scale=5.0, cfg="B")
    x_t, t = noise(8, 4, 8, 8), torch.tensor([100] * 4 + [700] * 4)
    both = asking.guided(sds, x_t, t, views)
    for group in (slice(0, 4), slice(4, 8)):
        torch.testing.assert_close(both[group], asking.guided(sds, x_t[group], t[group], views[group]), atol=1e-4, rtol=1e-4)
    other = x_t.clone()
    other[3] += 1
    moved = (asking.guided(sds, other, t, views) - both).abs().amax((1, 2, 3))
    assert moved[:4].min() > 1e-5 and moved[4:].max() < 1e-5


def test_mvdreams_formats_say_the_same(folders, tmp_path):
    """The library's names, its authors' in a file and in a folder, and a folder with the camera's layers apart."""
    folder = folders["mvdream"]
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    theirs = tiny_models.original(state)
    models = [mvdream(folder)]
    for name in ("view.pt", "view.safetensors"):
        path = write({f"model.diffusion_model.{key}": value for key, value in theirs.items()}, tmp_path / name)
        models.append(mvdream(path, base=str(folder)))
    apart = {key: value for key, value in state.items() if not key.startswith("class_embedding.")}
    camera = {key.removeprefix("class_embedding."): value for key, value in state.items() if key.startswith("class_embedding.")}
    for kind, unet in (("named", theirs), ("apart", apart)):
        copy = tmp_path / kind
        for part in ("vae", "scheduler"):
            (copy / part).mkdir(parents=True)
            for file in (folder / part).iterdir():
                (copy / part / file.name).write_bytes(file.read_bytes())
        (copy / "unet").mkdir()
        (copy / "unet" / "config.json").write_text('{"model_channels": 64}' if kind == "named" else
                                                   (folder / "unet" / "config.json").read_text())
        save_file({key: value.contiguous() for key, value in unet.items()},
                  copy / "unet" / "diffusion_pytorch_model.safetensors")
        if kind == "apart":
            (copy / "camera_proj").mkdir()
            save_file(camera, copy / "camera_proj" / "diffusion_pytorch_model.safetensors")
        models.append(mvdream(copy))
    x_t, t, text, camera = noise(4, 4, 8, 8), torch.full((4,), 300), noise(4, 5, tiny_models.WIDTH), noise(4, 16)
    first, *others = (model.eps(x_t, t, text, camera=camera) for model in models)
    assert first.std() > 0
    for other in others:
        torch.testing.assert_close(first, other, atol=1e-5, rtol=1e-5)


def test_a_group_shares_its_timestep(folders):
    prior = mvdream(folders["mvdream"])
    sds = SDS(prior, Cameras().encode(prior, "a red chair", {}))
    t = sds.timesteps(12, 3, STREAMS).view(3, 4)
    assert (t == t[:, :1]).all() and len(t[:, 0].unique()) == 3


def test_groups_of_cameras_stand_at_right_angles():
    views = Random(batch=8, group=4, camera_perturb=0.0, center_perturb=0.0, up_perturb=0.0)(2, STREAMS)
    turned = views.azimuth.view(2, 4).diff(dim=1) % (2 * math.pi)
    torch.testing.assert_close(turned, torch.full((2, 3), math.pi / 2))
    for value in (views.elevation, views.distance, views.fovy):
        assert (value.view(2, 4) == value.view(2, 4)[:, :1]).all() and value[0] != value[4]
    exact = orbit(views.azimuth, views.elevation, views.distance, views.fovy, (64, 64))
    torch.testing.assert_close(views.c2w, exact.c2w, atol=1e-5, rtol=1e-5)
    assert "groups of 4" in error(Random, batch=6, group=4)


def test_groups_are_evaluated_in_parts_that_add_up(folders):
    """Two groups of four views on two ranks of a group of workers; four views alone cannot be shared."""
    term, toy = "stages.0.terms.0.", ["stages.0.shape.levels=2", "stages.0.render.samples=8", "prompt=a red chair"]
    told = [*toy, f"{term}views.batch=8", f"{term}views.group=4", f"{term}guidance.prompts={{use: 'Cameras'}}",
            f"{term}guidance.prior={{use: 'MVDream', model: {folders['mvdream']}, resolution: 16}}"]
    stage = Stage(loader.load("toy", told), 0, torch.device("cpu"))
    unit, theta = stage.unit(pickle.loads(pickle.dumps(stage.embeddings()))), stage.scene.theta()
    whole = unit(theta, 5).grad.clone()
    parts = sum(unit(theta, 5, part, 2).grad.clone() for part in range(2))
    assert whole.abs().max() > 0
    torch.testing.assert_close(parts, whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-3)
    assert "multiple of 4" in error(unit, theta, 5, 0, 3)


# ---- both, built in ----

def trued(shape: str, azimuth: torch.Tensor) -> tuple[torch.Tensor, object]:
    """True views [B, 3, 64, 64] of a red or blue object on white, and their cameras."""
    shots = draw_shots(len(azimuth), STREAMS("shots"))
    level = torch.full_like(azimuth, 0.2)
    shots = Shots(azimuth, level, torch.full_like(azimuth, 1.8), torch.full_like(azimuth, math.radians(49.1)),
                  torch.zeros(len(azimuth), 3), toward(azimuth, level), shots.ambient)
    rgb, alpha = corpus.render(shape, "blue", shots, torch.ones(len(azimuth), 3))
    return torch.cat([rgb, alpha], -1), orbit(azimuth, 0.2, 1.8, math.radians(49.1), (64, 64))


def noised(prior, rgba: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0 = prior.encode(rgba[..., :3].movedim(-1, 1), STREAMS)
    bar, eps, t = prior.alpha_bar[step].float(), noise(*x0.shape), torch.full((len(x0),), step)
    return bar.sqrt() * x0 + (1 - bar).sqrt() * eps, eps, t


@pytest.mark.parametrize("shape", ["chair", "boat", "car"])
def test_the_built_in_pose_model_tells_an_azimuth_from_its_mirror_image(shape):
    """Shown an object's front, it explains true views from the left and the right best by their own poses."""
    prior, azimuth = Zero123("cpu"), torch.tensor([0.0, 0.8, -0.8, 1.6, -1.6])
    rgba, views = trued(shape, azimuth)
    conditions = shown_to(prior, Reference(0.0, 0.2, 1.8, math.radians(49.1), rgba[0]))
    x_t, eps, t = noised(prior, rgba, 800)
    _, mirrored = trued(shape, -azimuth)
    told = (conditions(views).positive, conditions(mirrored).positive, conditions(views).unconditional)
    own, other, blind = ((prior.eps(x_t, t, **inputs) - eps).square().mean((1, 2, 3)) for inputs in told)
    assert own[1:].mean() < 0.9 * other[1:].mean() and own.mean() < 0.9 * blind.mean()


def test_the_built_in_four_view_model_knows_where_its_cameras_are():
    """It explains four true views of a house best by their own cameras and words."""
    prior = MVDream("cpu")
    rgba, views = trued("house", AROUND + 0.3)
    x_t, eps, t = noised(prior, rgba, 600)
    _, turned = trued("house", AROUND + 0.3 + math.pi / 2)

    def explained(prompt: str, views: object) -> float:
        inputs = Cameras().encode(prior, prompt, {})(views).positive
        return (prior.eps(x_t, t, **inputs) - eps).square().mean().item()

    assert explained("a blue house", views) < 0.95 * explained("a blue house", turned)
    assert explained("a blue house", views) < explained("a red chair", views)


# ---- mistakes ----

def test_a_file_without_a_network_is_refused(tmp_path, folders):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    assert "no UNet of latent diffusion" in error(zero123, tmp_path / "other.ckpt", base=str(folders["zero123"]))
    assert "no file" in error(zero123, tmp_path / "none.ckpt")
    assert "is a file" in error(StableDiffusion, "cpu", model=str(tmp_path / "other.ckpt"))


def test_a_models_kind_does_not_depend_on_where_it_lies(folders, tmp_path):
    """A path that says "stable", a folder whose name looks like a file's, a checkpoint whose name says nothing."""
    state = tiny_models.original(load_file(folders["zero123"] / "unet" / "diffusion_pytorch_model.safetensors"))
    weight, bias = projection(folders["zero123"])
    state |= {"cc_projection.weight": weight, "cc_projection.bias": bias}
    (tmp_path / "stable").mkdir()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "stable" / "weights")
    (tmp_path / "model.ckpt").symlink_to(folders["zero123"])
    told = [shown_to(zero123(path, base=str(folders["zero123"])), picture()) for path in
            (folders["zero123"], tmp_path / "model.ckpt", tmp_path / "stable" / "weights")]
    for other in told[1:]:
        torch.testing.assert_close(told[0].token, other.token, atol=1e-5, rtol=1e-5)
        assert not other.polar


def test_models_of_another_kind_are_refused(folders):
    assert "shown a picture" in error(zero123, folders["sd"])
    assert "give an MVDream" in error(lambda: mvdream(folders["sd"]).unet)
    assert "give an MVDream" in error(mvdream(folders["sd"]).verify)
    four, pose = mvdream(folders["mvdream"]), zero123(folders["zero123"])
    text = StableDiffusion("cpu", model=str(folders["sd"]))
    assert "Cameras" in error(Plain().encode, four, "a chair", {})
    assert "does not know" in error(Cameras().encode, text, "a chair", {})
    assert "does not look at" in error(FromPicture(picture()).encode, text, "a chair", {})
    assert "use FromPicture" in error(Plain().encode, pose, "a chair", {})
    for prior in (four, pose):
        assert "text" in error(Lora, prior, STREAMS)


@pytest.mark.parametrize("kind", ["zero123", "mvdream"])
def test_score_distillation_carries_what_they_want_to_the_render(kind, folders):
    """The gradient is pure in (render, step, seed), finite, and that of all four views."""
    prior = zero123(folders[kind]) if kind == "zero123" else mvdream(folders[kind])
    told = shown_to(prior, picture()) if kind == "zero123" else Cameras().encode(prior, "a red chair", {})
    sds, views = SDS(prior, told, scale=3.0, cfg="B", weighting="uniform"), orbit(AROUND, 0.2, 1.8, 0.8, (16, 16))

    def gradient() -> torch.Tensor:
        rgb = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
        sds(Image(rgb, torch.ones(4, 16, 16, 1), torch.ones(4, 16, 16, 1)), views, 7, Streams(0, 7))[0].backward()
        return rgb.grad

    first = gradient()
    assert first.isfinite().all() and (first.abs().amax((1, 2, 3)) > 0).all() and torch.equal(first, gradient())
    assert isinstance(told, TextConditions) == (kind == "mvdream")
