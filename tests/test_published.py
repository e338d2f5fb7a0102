"""The full-scale configurations on models as they are published: true configuration files, true names and shapes of weights."""

import json
import os
import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import published
import pytest
import torch
from finished import measured
from published import FULL_SCALE, ID, PLAIN
from tiny_models import disc

from mpiprop.cli.main import dispatch
from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.priors.diffusion import DeepFloyd, StableDiffusion
from mpiprop.priors.mvdream import MVDream
from mpiprop.priors.zero123 import Zero123

KIND = {"if": DeepFloyd, "mvdream": MVDream, "mvdream-authors": MVDream, "zero123-xl": Zero123, "zero123-kxic": Zero123}
TOLD = {  # of each model: pixels, the VAE's scale, millions of numbers that stay (UNet and VAE), by their cards and papers
    "sd-1.5": (512, 0.18215, 860 + 84), "sd-2.1-base": (512, 0.18215, 866 + 84), "sdxl-vae": (512, 0.13025, 860 + 84),
    "if": (64, None, 4300), "mvdream": (256, 0.18215, 868 + 84), "mvdream-authors": (256, 0.18215, 868 + 84),
    "zero123-xl": (256, 0.18215, 860 + 84), "zero123-kxic": (256, 0.18215, 860 + 84)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: published.build(name, root / name, None if name in PLAIN else "fp16") for name in published.MODELS}


@pytest.mark.parametrize("name", TOLD)
def test_published_models_are_read_and_fit(name, folders):
    pixels, scale, millions = TOLD[name]
    variant = None if name in PLAIN else "fp16"
    prior = KIND.get(name, StableDiffusion)("cpu", model=str(folders[name]), variant=variant, dtype="float16")
    assert prior.verify(["a red chair"] if name[:4] != "zero" else []) == []
    assert (prior.config["sample_size"] if name == "if" else prior.resolution) == pixels
    assert getattr(prior, "scale", None) == scale and prior.prediction == "epsilon"
    assert prior.weight_bytes() / 2e6 == pytest.approx(millions, rel=0.005)
    assert len(prior.alpha_bar) == 1000
    if name != "if":  # linear in the root of beta from 0.00085 to 0.012: its product, summed independently
        beta = (0.00085 ** 0.5 + (0.012 ** 0.5 - 0.00085 ** 0.5) * torch.arange(1000, dtype=torch.float64) / 999) ** 2
        assert float(prior.alpha_bar[-1]) == pytest.approx(float(torch.log1p(-beta).sum().exp()), rel=1e-9)


@pytest.fixture(scope="module")
def cache(folders, tmp_path_factory) -> Path:
    """A cache of the hub's library with all models that the configurations name."""
    root = tmp_path_factory.mktemp("cache")
    for model, of in ID.items():
        published.cache(root, folders[of], model)
    return root


@pytest.mark.parametrize("name", FULL_SCALE)
def test_every_full_scale_configuration_passes_its_check(name, cache, tmp_path, monkeypatch, capsys):
    """As a user types it, without a network: only in half precision with a view a step (MVDream's: four), for the memory of
    a small machine. Two steps of each stage are in test_full_scale.py."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    run, models = loader.load(name), []
    words = [f"image={disc(tmp_path / 'disc.png')}"] if not run.reads_prompt else []
    for i, stage in enumerate(run.stages):
        guidance = stage.terms[0].guidance
        prior, variates = guidance.part("prior"), guidance.keys.get("variates")
        nodes = [prior, *(map(variates.part, ("estimator", "decoder")) if variates else ())]
        models.append(", ".join(f"{node.use} {node.keys['model']}" for node in nodes))
        words += [f"stages.{i}.terms.0.views.batch={4 if prior.use == 'MVDream' else 1}",
                  f"stages.{i}.terms.0.guidance.prior.dtype=float16"]
    before = sorted(tmp_path.rglob("*"))
    assert dispatch(["run", name, "--check", *words]) == 0
    table = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()[1:len(run.stages) + 1]]
    assert [(row[0], row[1], row[-1]) for row in table] == [
        (stage.name, f"{stage.steps:,}", model) for stage, model in zip(run.stages, models)]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_of_the_third_stage_that_lacks_a_file_is_told_before_weights_are_read(cache, folders, tmp_path, monkeypatch):
    """And before any step: the program ends with less memory than the weights of one UNet in half precision take."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    shutil.copytree(folders["sd-2.1-base"], tmp_path / "model", copy_function=os.link)
    (tmp_path / "model/vae/diffusion_pytorch_model.fp16.safetensors").unlink()
    done, peak = measured("run", "prolificdreamer", "stages.2.terms.0.guidance.prior.model=model", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "mpiprop: stages.2.terms.0.guidance.prior: model 'model' has no vae/diffusion_pytorch_model.safetensors; "
        "give a whole model in the layout of diffusers"]
    assert peak < 2 * 860e6 and not (tmp_path / "runs").exists()


def test_zero123s_file_borrows_the_rest_from_its_base(folders, tmp_path):
    """The authors' checkpoint (whole, with names of latent diffusion) and the published base, whose VAE has old names."""
    shapes = published.shapes("UNet2DConditionModel", published.ZERO, authors=True)
    found = {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}
    found |= {"cc_projection.weight": (768, 772), "cc_projection.bias": (768,), "betas": (1000,)}
    published.sparse(found, tmp_path / "zero.ckpt", "F32")
    base = published.build("image-variations", tmp_path / "base", variant=None)
    prior = Zero123("cpu", model=str(tmp_path / "zero.ckpt"), base=str(base))
    assert prior.verify() == [] and prior.resolution == 256
    found["cc_projection.weight"] = (768, 516)
    published.sparse(found, tmp_path / "zero.ckpt", "F32")
    with pytest.raises(UserError, match=r"camera projection is \[768, 516\]"):
        Zero123("cpu", model=str(tmp_path / "zero.ckpt"), base=str(base)).verify()


def test_models_of_one_kind_read_as_another_are_told_before_a_step(folders):
    for cls, name, says in ((StableDiffusion, "zero123-xl", "8 channels"), (Zero123, "sd-1.5", "4 channels"),
                            (MVDream, "sd-2.1-base", "give an MVDream"), (DeepFloyd, "sd-1.5", "text_encoder")):
        with pytest.raises(UserError, match=says) as caught:
            cls("cpu", model=str(folders[name]), variant="fp16").verify()
        assert "\n" not in str(caught.value)


INDEX = {"StableDiffusion3Pipeline": ("transformer", "SD3Transformer2DModel"),
         "FluxPipeline": ("transformer", "FluxTransformer2DModel"),
         "PixArtSigmaPipeline": ("transformer", "PixArtTransformer2DModel"),
         "StableDiffusionXLPipeline": ("text_encoder_2", "CLIPTextModelWithProjection")}


@pytest.mark.parametrize("pipeline", INDEX)
def test_models_that_are_not_supported_are_called_by_their_name(pipeline, tmp_path):
    part, cls = INDEX[pipeline]
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline, part: ["diffusers", cls]}))
    with pytest.raises(UserError, match="Stable Diffusion 1 or 2, a DeepFloyd IF, a Zero-1-to-3 or an MVDream") as caught:
        StableDiffusion("cpu", model=str(tmp_path))
    assert pipeline in str(caught.value) and "\n" not in str(caught.value)
