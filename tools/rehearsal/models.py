"""A Stable Diffusion 2.1 of the true shapes in half precision, or a tiny one, with random weights, in a diffusers folder.

Weights are normal with a deviation of one over the root of the inputs of a layer, so that numbers keep their size on the way
through: what half precision makes of them is what it makes of a trained network's.
"""

import shutil
from pathlib import Path

import torch
from torch import nn

from mpiprop.priors.parts import BUILTIN
from tools.rehearsal.book import Section, wait

UNET = {"sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
       "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
        "hidden_act": "gelu", "max_position_embeddings": 77, "vocab_size": 49408, "projection_dim": 512}
TINY_UNET = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 32), "layers_per_block": 1,
             "cross_attention_dim": 32, "attention_head_dim": (1, 1), "use_linear_projection": True, "norm_num_groups": 8,
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
TINY_VAE = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "sample_size": 16, "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
TINY_TEXT = TEXT | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
NUMBERS = {"unet": 865_910_724, "vae": 83_653_863}  # of the published models


def make(folder: Path, small: bool, device: torch.device) -> dict[str, int]:
    """Fills the folder; how many numbers each network has."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                  steps_offset=1).save_pretrained(folder / "scheduler")
    shutil.copytree(BUILTIN / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    counts, generator = {}, torch.Generator(device).manual_seed(0)
    for part, build in (("unet", lambda: UNet2DConditionModel(**(TINY_UNET if small else UNET))),
                        ("vae", lambda: AutoencoderKL(**(TINY_VAE if small else VAE))),
                        ("text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**(TINY_TEXT if small else TEXT))))):
        with torch.device("meta"):
            network = build()
        network = (network if small else network.half()).to_empty(device=device)
        counts[part] = sum(parameter.numel() for parameter in network.parameters())
        randomise(network, generator)
        network.save_pretrained(folder / part)
    return counts


@torch.no_grad()
def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Gives a network of no content weights."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def main() -> None:
    section = Section.of(__doc__)
    with section.attempt("model"):
        device, folder = section.device(), section.work / "model"
        if not (folder / "text_encoder" / "config.json").exists():
            for part, count in make(folder, section.small, device).items():
                right = None if section.small or part not in NUMBERS else count == NUMBERS[part]
                section.row(f"{part}, numbers", count, ok=right, note="random weights" + ("" if section.small else ", float16"))
            wait(device)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        section.row("model folder", size / 1e9, "GB", ok=size > 0)


if __name__ == "__main__":
    main()
