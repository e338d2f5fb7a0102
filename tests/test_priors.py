"""Priors against the libraries they stand on, a numerical integral, and the mistakes people make with models."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
import torch.nn.functional as F

from mpiprop.corpus.captions import caption
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.priors.base import alpha_bar
from mpiprop.priors.closed_form import ClosedForm
from mpiprop.priors.diffusion import DeepFloyd, StableDiffusion
from mpiprop.priors.parts import BUILTIN
from tools import corpus
from tools.dataset import draw_shots

SEEDED = Streams(0, 0)
CAPTIONS = ["a red chair, front view", "a green mushroom", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind of tiny model."""
    root = tmp_path_factory.mktemp("models")
    return {kind: str(tiny_models.make(kind, root / kind)) for kind in ("sd", "sd-v", "sd-tiny-vae", "if")}


@pytest.fixture
def folder(tmp_path):
    """A tiny Stable Diffusion to be damaged."""
    return tiny_models.make("sd", tmp_path / "sd")


def edit(folder: Path, part: str, **changes: object) -> None:
    path = next((folder / part).glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=SEEDED("test"))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alpha_bar_is_the_schedulers(schedule):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule=schedule, beta_start=0.0009, beta_end=0.013)
    ours = alpha_bar(dict(scheduler.config))
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)  # theirs is float32


def test_stable_diffusion_text_is_the_pipelines(folders):
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    parts = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
             "tokenizer": CLIPTokenizer, "scheduler": DDPMScheduler}
    pipeline = StableDiffusionPipeline(
        **{name: cls.from_pretrained(folders["sd"], subfolder=name) for name, cls in parts.items()},
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    positive, negative = pipeline.encode_prompt(CAPTIONS[:2], "cpu", 1, True, negative_prompt=["", ""])
    ours = StableDiffusion("cpu", model=folders["sd"]).embed(CAPTIONS)
    torch.testing.assert_close(ours, torch.cat([positive, negative[:1]]))


def test_deep_floyds_text_is_the_pipelines(folders):
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
    from transformers import T5EncoderModel, T5Tokenizer

    parts = {"unet": UNet2DConditionModel, "text_encoder": T5EncoderModel, "tokenizer": T5Tokenizer,
             "scheduler": DDPMScheduler}
    pipeline = IFPipeline(**{name: cls.from_pretrained(folders["if"], subfolder=name) for name, cls in parts.items()},
                          safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False)
    positive, negative = pipeline.encode_prompt([" A red CHAIR, front view", CAPTIONS[1]], device="cpu")
    ours = DeepFloyd("cpu", model=folders["if"]).embed([" A red CHAIR, front view", *CAPTIONS[1:]])
    torch.testing.assert_close(ours, torch.cat([positive, negative[:1]]))


@pytest.mark.parametrize("kind", ["sd", "sd-v"])
def test_predicted_noise_agrees_with_the_libraries_predicted_image(kind, folders):
    """DDPMScheduler turns the network's output, whatever it predicts, into x0; ours must be the noise of that x0."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    prior = StableDiffusion("cpu", model=folders[kind])
    unet = UNet2DConditionModel.from_pretrained(folders[kind], subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(folders[kind], subfolder="scheduler")
    x_t, text, t = noise(3, 4, 8, 8), prior.embed(CAPTIONS), torch.tensor([20, 500, 980])
    eps = prior.eps(x_t, t, text)
    with torch.no_grad():
        out = unet(x_t, t, text).sample
    for b in range(3):
        x0 = scheduler.step(out[b:b + 1], int(t[b]), x_t[b:b + 1]).pred_original_sample
        bar = scheduler.alphas_cumprod[t[b]]
        noised = bar.sqrt() * x0 + (1 - bar).sqrt() * eps[b:b + 1]
        torch.testing.assert_close(noised, x_t[b:b + 1], atol=1e-4, rtol=1e-4)


def test_deep_floyd_takes_the_first_three_of_six_channels(folders):
    from diffusers import UNet2DConditionModel

    prior = DeepFloyd("cpu", model=folders["if"])
    unet = UNet2DConditionModel.from_pretrained(folders["if"], subfolder="unet")
    x_t, text, t = noise(3, 3, 16, 16), prior.embed(CAPTIONS), torch.tensor([20, 500, 980])
    with torch.no_grad():
        out = unet(x_t, t, text).sample
    assert out.shape[1] == 6
    torch.testing.assert_close(prior.eps(x_t, t, text), out[:, :3])
    rgb = noise(2, 3, 16, 16).sigmoid()
    torch.testing.assert_close(prior.encode(rgb, SEEDED), 2 * rgb - 1)
    torch.testing.assert_close(prior.decode(prior.encode(rgb, SEEDED)), rgb)


def test_latents_are_posterior_samples_with_keyed_noise(folders):
    """Mean and deviation over many draws are the VAE's, at the model's size, scaled; a stream repeats its bits."""
    from diffusers import AutoencoderKL

    prior = StableDiffusion("cpu", model=folders["sd"])
    rgb = noise(1, 3, 10, 10).sigmoid()
    vae = AutoencoderKL.from_pretrained(folders["sd"], subfolder="vae")
    with torch.no_grad():
        q = vae.encode(F.interpolate(rgb, (16, 16), mode="bilinear") * 2 - 1).latent_dist
        draws = prior.encode(rgb.expand(4000, -1, -1, -1), SEEDED)
    assert draws.shape == (4000, 4, 8, 8)
    scale = vae.config.scaling_factor
    error = (draws.mean(0) / scale - q.mean[0]) / (q.std[0] / math.sqrt(4000))
    assert error.abs().max() < 5 and (draws.std(0) / scale / q.std[0] - 1).abs().max() < 0.08  # 256 numbers, five sigma
    again, other = (prior.encode(rgb, rng) for rng in (SEEDED, SEEDED.of("other")))
    assert torch.equal(prior.encode(rgb, SEEDED), again) and not torch.equal(again, other)


@pytest.mark.parametrize("kind, cls", [("sd", StableDiffusion), ("sd-tiny-vae", StableDiffusion), ("if", DeepFloyd)])
def test_the_encoders_gradient_is_its_finite_difference(kind, cls, folders):
    prior = cls("cpu", model=folders[kind])
    if kind != "if":
        prior.vae.double()
        prior.dtype = torch.float64
    rgb, to = noise(2, 3, 24, 24).sigmoid().double().requires_grad_(), noise(2, 3, 24, 24).double()
    out = prior.encode(rgb, SEEDED)
    weigh = noise(*out.shape)
    (out * weigh).sum().backward()
    with torch.no_grad():
        h = 1e-6
        up, down = ((prior.encode(rgb + step * to, SEEDED) * weigh).sum() for step in (h, -h))
    assert (rgb.grad * to).sum().item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-4)
    assert rgb.grad.abs().max() > 0


def test_networks_are_frozen_and_predictions_carry_no_gradient(folders):
    prior = StableDiffusion("cpu", model=folders["sd-v"])
    for module in (prior.unet, prior.vae):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    x_t = noise(1, 4, 8, 8).requires_grad_()
    assert not prior.eps(x_t, torch.tensor([5]), prior.embed(["a chair"])).requires_grad
    assert 0 <= prior.decode(noise(1, 4, 8, 8)).min() and prior.decode(noise(1, 4, 8, 8)).max() <= 1


def test_decoding_is_the_vaes(folders):
    from diffusers import AutoencoderKL, AutoencoderTiny

    x0 = noise(2, 4, 8, 8)
    for kind, cls in (("sd", AutoencoderKL), ("sd-tiny-vae", AutoencoderTiny)):
        vae = cls.from_pretrained(folders[kind], subfolder="vae")
        with torch.no_grad():
            rgb = (vae.decode(x0 / vae.config.scaling_factor).sample + 1) / 2
        torch.testing.assert_close(StableDiffusion("cpu", model=folders[kind]).decode(x0), rgb.clamp(0, 1))


def test_lower_precision_is_close(folders):
    prior, half = (StableDiffusion("cpu", model=folders["sd"], dtype=dtype) for dtype in ("float32", "bfloat16"))
    text, x_t, t = prior.embed(CAPTIONS), noise(3, 4, 8, 8), torch.tensor([20, 500, 980])
    low = half.eps(x_t, t, text)
    assert low.dtype == torch.float32 and half.unet.dtype == torch.bfloat16
    torch.testing.assert_close(low, prior.eps(x_t, t, text), atol=0.05, rtol=0.05)


@pytest.mark.skipif(not (BUILTIN / "unet" / "config.json").exists(), reason="no weights in this checkout")
def test_the_built_in_prior_denoises_a_picture_best_by_its_own_caption():
    """Red cars from in front, noised: other colours, other things and the view from behind explain them worse."""
    shots = draw_shots(16, SEEDED("shots"))
    shots = replace(shots, azimuth=0.2 * (shots.azimuth / math.pi), elevation=0.2 * torch.ones(16))
    rgb, _ = corpus.render("car", "red", shots, torch.ones(16, 3))
    prior = StableDiffusion("cpu")
    x0 = prior.encode(rgb.movedim(-1, 1), SEEDED)
    assert 0.5 < x0.std() < 2 and (prior.decode(x0) - rgb.movedim(-1, 1)).abs().mean() < 0.05
    bar, eps, t = prior.alpha_bar[600].float(), noise(*x0.shape), torch.full((16,), 600)
    x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    captions = [caption(shape, colour, view) for shape, colour, view in (
        ("car", "red", "front view"), ("car", "blue", "front view"), ("mushroom", "red", "front view"),
        ("car", "red", "back view"))]
    own, *others = ((prior.eps(x_t, t, text.expand(16, -1, -1)) - eps).square().mean()
                    for text in prior.embed(captions))
    assert own < min(others)


def test_closed_form_noise_is_the_posterior_mean():
    """E[eps | x_t] by summing over a fine grid of x0, for each pixel and channel."""
    prior = ClosedForm("cpu", size=4, spread=0.3)
    text, t = prior.embed(["a green ball"]), torch.tensor([400])
    x_t = noise(1, 3, 4, 4)
    alpha, sigma = prior.alpha_bar[400].sqrt(), (1 - prior.alpha_bar[400]).sqrt()
    x0 = torch.linspace(-6, 6, 20001, dtype=torch.float64).view(-1, 1, 1, 1)
    eps = (x_t - alpha * x0) / sigma
    p = torch.exp(-((x0 - prior.mean(text)) / 0.3) ** 2 / 2 - eps ** 2 / 2)
    expected = (eps * p).sum(0, True) / p.sum(0)
    torch.testing.assert_close(prior.eps(x_t, t, text).double(), expected, atol=1e-5, rtol=1e-5)


def test_closed_form_pictures_are_discs_of_the_colour_named_on_white():
    prior = ClosedForm("cpu", radius=0.6)
    text = prior.embed(["a green ball, front view", "a green ball, back view", ""])
    front, back, none = prior.decode(prior.mean(text))
    assert front[1, 8, 8] > front[0, 8, 8] and front[1, 8, 8] > front[2, 8, 8]
    torch.testing.assert_close(back[:, 8, 8], front[:, 8, 8] / 2)
    assert none[:, 8, 8].std() == 0 and (front[:, 0, 0] == 1).all()
    covered = (1 - front[0]).sum() / (1 - front[0, 8, 8]) / 256
    assert covered == pytest.approx(math.pi * 0.6 ** 2 / 4, rel=0.02)


def error(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("model", ["/nowhere/model", "nowhere", "./a/b"])
def test_a_missing_folder_is_named(model):
    line = error(StableDiffusion, "cpu", model=model)
    assert model in line and "no folder" in line and "hub id" in line


def test_a_folder_without_a_part_is_named(folder, tmp_path):
    (folder / "vae" / "config.json").unlink()
    assert "vae/config.json" in error(StableDiffusion, "cpu", model=str(folder))
    assert "unet/config.json" in error(DeepFloyd, "cpu", model=str(tmp_path))


@pytest.mark.parametrize("part, name", [("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")])
def test_weights_of_old_repositories_are_read_without_running_them(part, name, folder):
    """A .bin, which is a pickle, says what the .safetensors said."""
    from safetensors.torch import load_file

    (path,) = (folder / part).glob("*.safetensors")
    torch.save(load_file(path), folder / part / f"{name}.bin")
    path.unlink()
    after = StableDiffusion("cpu", model=str(folder))
    assert after.verify(["a chair"]) == []
    (key, value), *_ = after.place(part).state_dict().items()
    assert torch.equal(value, torch.load(folder / part / f"{name}.bin")[key])


def test_a_missing_variant_falls_back_to_the_plain_files_and_says_so(folder):
    prior = StableDiffusion("cpu", model=str(folder), variant="fp16")
    lines = prior.verify(["a chair"])
    assert [part in line and "variant fp16" in line and ".safetensors" in line
            for part, line in zip(("unet", "vae", "text_encoder"), lines, strict=True)] == [True] * 3
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_suffix(".fp16.safetensors"))
    assert len(prior.verify()) == 2
    prior.unet
    assert "unet/diffusion_pytorch_model" in error(StableDiffusion("cpu", model=str(folder)).verify)


def test_weights_in_several_files(folder):
    from safetensors.torch import load_file, save_file

    (path,) = (folder / "unet").glob("*.safetensors")
    x_t, t = noise(1, 4, 8, 8), torch.tensor([5])
    text = noise(1, 4, tiny_models.WIDTH)
    whole, state = StableDiffusion("cpu", model=str(folder)).eps(x_t, t, text), load_file(path)
    path.unlink()
    names = sorted(state)
    shards = {"a-00001-of-00002.safetensors": names[::2], "a-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, folder / "unet" / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    prior = StableDiffusion("cpu", model=str(folder))
    assert prior.verify() == [] and torch.equal(prior.eps(x_t, t, text), whole)
    (folder / "unet" / "a-00002-of-00002.safetensors").unlink()
    assert "has no unet/a-00002-of-00002.safetensors" in error(prior.verify)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def reshape(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    name = next(name for name, value in state.items() if value.dim() > 1)
    save_file(state | {name: state[name][:1].contiguous()}, path)


def rename(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    state["other"] = state.pop(next(iter(state)))
    save_file(state, path)


DAMAGES = {truncate: "fetch it again", reshape: ", not [", rename: "is missing",
           Path.unlink: "whole model", lambda path: path.write_text("version https://git-lfs.github.com/x"): "git lfs pull",
           lambda path: path.write_bytes(b"\x80\x02rubbish"): "fetch it again",
           lambda path: path.write_bytes(b""): "fetch it again"}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_told_in_one_line_before_they_are_used(part, damage, folder):
    (path,) = (folder / part).glob("*.safetensors")
    damage(path)
    line = error(StableDiffusion("cpu", model=str(folder)).verify)
    assert part in line and str(folder) in line and DAMAGES[damage] in line
    assert part in error(lambda: StableDiffusion("cpu", model=str(folder)).place(part))


@pytest.mark.parametrize("path, content, says", [
    ("vae/config.json", "[", "vae/config.json cannot be read"),
    ("vae/config.json", "[]", "vae/config.json cannot be read"),
    ("unet/config.json", '{"block_out_channels": "many", "sample_size": 8}', "unet"),
    ("text_encoder/config.json", '{"hidden_size": "wide"}', "text_encoder"),
    ("tokenizer/vocab.json", "{", "tokenizer"),
])
def test_damaged_configurations_are_told_in_one_line(path, content, says, folder):
    (folder / path).write_text(content)
    assert says in error(lambda: StableDiffusion("cpu", model=str(folder)).verify(["a chair"]))


def test_weight_bytes_are_those_of_the_networks_that_stay(folders):
    for cls, kind in ((StableDiffusion, "sd"), (DeepFloyd, "if")):
        prior = cls("cpu", model=folders[kind], dtype="bfloat16")
        kept = [prior.unet] if kind == "if" else [prior.unet, prior.vae]
        assert prior.weight_bytes() == 2 * sum(p.numel() for module in kept for p in module.parameters())
    assert ClosedForm("cpu").weight_bytes() == 0 and ClosedForm("cpu").verify(["a ball"]) == []


@pytest.mark.parametrize("part, changes, says", [
    ("scheduler", {"prediction_type": "sample"}, "prediction_type 'sample'"),
    ("scheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
    ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow model"),
    ("unet", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
    ("unet", {"in_channels": 9}, "9 channels"),
    ("vae", {"_class_name": "VQModel"}, "VQModel"),
])
def test_models_of_another_kind_are_refused(part, changes, says, folder):
    edit(folder, part, **changes)
    assert says in error(StableDiffusion, "cpu", model=str(folder))
