"""Models as they were published load: configurations of old libraries, true shapes, caches without a network."""

import json
import os
import shutil
from pathlib import Path

import published
import pytest
import tiny_models
import torch

import mpiprop.config as config
from mpiprop.components import build
from mpiprop.core.errors import UserError
from mpiprop.priors.diffusion import DeepFloyd, StableDiffusion
from mpiprop.priors.zero123 import Zero123

PRIORS = {"sd15": StableDiffusion, "sd21": StableDiffusion, "if": DeepFloyd, "zero123": Zero123}
KINDS = {"StableDiffusion": "sd21", "DeepFloyd": "if", "Zero123": "zero123"}
FULL = [name for name in config.names() if "/" not in name and name not in ("demo", "toy")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: published.make(kind, folder / kind) for kind in published.MODELS}


@pytest.mark.parametrize("kind, parameters", [("sd15", 859_520_964), ("sd21", 865_910_724), ("zero123", 859_532_484)])
def test_a_published_model_is_read_through_its_classes_defaults(models, kind, parameters):
    """The sizes of the UNets are those that their authors state: 860, 866 and 860 million."""
    prior = PRIORS[kind]("cpu", model=str(models[kind]), dtype="float16")
    assert prior.scale == 0.18215 and prior.shift == 0.0 and prior.prediction == "epsilon"
    assert prior.resolution == 256 if kind == "zero123" else 512
    assert prior.verify() == []
    vae = 83_653_863
    assert prior.weight_bytes() == 2 * (parameters + vae)


def changed(model: Path, to: Path, part: str, config: dict) -> Path:
    """The model with another configuration of a part; files are shared."""
    shutil.copytree(model, to, copy_function=os.link)
    (to / part / "config.json").unlink()
    (to / part / "config.json").write_text(json.dumps(config))
    return to


def test_deepfloyd_is_read_through_its_classes_defaults(models):
    prior = DeepFloyd("cpu", model=str(models["if"]), dtype="float16")
    assert prior.verify() == [] and 8.0e9 < prior.weight_bytes() < 9.5e9  # 4.3 billion numbers


def test_an_autoencoder_says_its_own_scale(models, tmp_path):
    """SDXL's says 0.13025 where those before it say nothing."""
    folder = changed(models["sd15"], tmp_path / "sd", "vae", published.SDXL_VAE)
    assert StableDiffusion("cpu", model=str(folder)).scale == 0.13025


@pytest.mark.parametrize("name", FULL)
def test_every_prior_of_a_full_scale_configuration_is_built_from_published_files(models, name):
    for stage in config.load(name).stages:
        for term in stage.terms:
            if "prior" in term.guidance.keys:
                node = term.guidance.part("prior")
                folder = models[KINDS[node.use.partition(":")[2]]]
                build(node, torch.device("cpu"), model=str(folder), variant=None).verify()


def test_a_missing_variant_is_replaced_and_told(tmp_path):
    folder = tiny_models.make("sd", tmp_path / "sd")
    prior = StableDiffusion("cpu", model=str(folder), variant="fp16")
    notes = prior.verify()
    assert len(notes) == 3 and all("variant fp16" in note and "\n" not in note for note in notes)
    assert sum(parameter.numel() for parameter in prior.unet.parameters()) > 0


def test_a_wrong_shape_a_cut_and_a_missing_file_are_told_before_weights_are_read(models, tmp_path):
    def said(model) -> str:
        with pytest.raises(UserError) as caught:
            StableDiffusion("cpu", model=str(model)).verify()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = shutil.copytree(tiny_models.make("sd", tmp_path / "sd"), tmp_path / "cut")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert str(weights) in said(folder) and "fetch it again" in said(folder)
    weights.unlink()
    assert "unet/diffusion_pytorch_model.safetensors" in said(folder)
    published.hollow({"conv_in.weight": (1, 2, 3, 3)}, weights, torch.float32)
    assert "unet" in said(folder) and "conv_in.weight is [1, 2, 3, 3], not" in said(folder)


@pytest.mark.parametrize("index", [
    {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]},
    {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
    {"_class_name": "PixArtSigmaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}])
def test_models_without_a_unet_are_called_by_their_names(tmp_path, index):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{index['_class_name']} .*transformer, not a UNet.*Stable Diffusion 1 or 2"):
        StableDiffusion("cpu", model=str(tmp_path))


def test_sdxl_is_called_by_its_name(models, tmp_path):
    folder = changed(models["sd15"], tmp_path / "sd", "unet", published.SD15_UNET | {"addition_embed_type": "text_time"})
    with pytest.raises(UserError, match="Stable Diffusion XL"):
        StableDiffusion("cpu", model=str(folder))


@pytest.mark.parametrize("offline", [True, False])
def test_a_filled_cache_needs_no_network(monkeypatch, tmp_path, offline):
    """Neither in offline mode nor where the hub does not answer: only files in the cache are opened."""
    import huggingface_hub

    published.cached("owner/name", tiny_models.make("sd", tmp_path / "sd"), tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    prior = StableDiffusion("cpu", model="owner/name")
    assert prior.verify(["a red chair"]) == []
    assert prior.embed(["a red chair"]).shape[-1] == tiny_models.WIDTH and prior.unet is not None


def test_the_pose_of_a_model_does_not_depend_on_its_path(tmp_path):
    """A folder called stable is no Stable Zero123."""
    folder = tiny_models.make("zero123", tmp_path / "stable-models/zero123-xl")
    assert not Zero123("cpu", model=str(folder)).stable and Zero123("cpu", model=str(folder), pose="stable").stable
