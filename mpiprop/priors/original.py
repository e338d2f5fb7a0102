"""Networks as their authors saved them: one checkpoint file, parts named as in the code of latent diffusion.

The names are translated by the diffusers library; nothing but tensors is read from a file. What a checkpoint lacks or
holds in a form of its own (autoencoder, encoders, tokenizer, scheduler) is read from another model, its `base`.
"""

import inspect
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpiprop.core.errors import UserError
from mpiprop.priors.parts import Parts, first_line

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
PREFIX = "model.diffusion_model."  # of the UNet
SIDE = 32  # of the latents that these models were trained at


@dataclass(frozen=True)
class Original:
    """The parts of a model that is one checkpoint file: its UNet, and for all else those of `base`."""

    model: str
    base: Parts

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All that the file holds, on the CPU."""
        return tensors(Path(self.model).expanduser())

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part; the UNet's is read off its weights."""
        return unet_config(self.tensors, self.model) if part == "unet" else self.base.config(part)

    def has(self, part: str) -> bool:
        """Whether the base model has such a part."""
        return self.base.has(part)

    def load(self, part: str, cls: type, dtype: torch.dtype | None = None) -> Any:
        """A part of the base model."""
        return self.base.load(part, cls, dtype)


def parts_of(model: str, variant: str | None, revision: str | None, builtin: str, base: str) -> Parts | Original:
    """The parts of a model: "builtin", a checkpoint file, a folder or a hub id."""
    path = Path(model).expanduser()
    if path.suffix not in SUFFIXES:
        return Parts(model, variant, revision, builtin)
    if not path.is_file():
        raise UserError(f"model {model!r}: there is no file {path}")
    return Original(model, Parts(base))


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a .safetensors file or a checkpoint of torch, of which nothing else is read."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # pickle, zip and safetensors raise their own
        raise UserError(f"{path} does not load as a file of tensors alone ({first_line(error)}); a file that holds more is not "
                        "read, since that would run what it says: convert it to .safetensors, or give a folder") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    if not (found := {name: value for name, value in found.items() if isinstance(value, Tensor)}):
        raise UserError(f"{path} holds no tensors by name; give a checkpoint of the model")
    return found


def is_original(names: Mapping[str, Any]) -> bool:
    """Whether a UNet's parameters have their authors' names."""
    return any(name.removeprefix(PREFIX).startswith("input_blocks.") for name in names)


def unet_config(found: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The configuration of UNet2DConditionModel that the shapes of a UNet's weights tell; heads as in Stable Diffusion 1
    (8 at any width) or 2 (64 wide)."""
    shapes = {name.removeprefix(PREFIX): tuple(value.shape) for name, value in found.items() if "model_ema" not in name}
    try:
        first, last = shapes["input_blocks.0.0.weight"], shapes["out.2.weight"]
        widths, attends, resnets, i, cross, linear = [], [], 0, 1, 0, False
        level_ends = True
        while any(name.startswith(f"input_blocks.{i}.0.") for name in shapes):
            if f"input_blocks.{i}.0.op.weight" in shapes:
                level_ends = True
            else:
                if level_ends:
                    widths.append(0)
                    attends.append(False)
                    level_ends = False
                widths[-1] = shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0]
                resnets += len(widths) == 1
                if (key := f"input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight") in shapes:
                    attends[-1], cross = True, shapes[key][1]
                    linear = len(shapes[f"input_blocks.{i}.1.proj_in.weight"]) == 2
            i += 1
    except KeyError as error:
        raise UserError(f"model {where!r}: holds no UNet of latent diffusion (no {error}); give a checkpoint of the "
                        "whole model") from error
    return {"sample_size": SIDE, "in_channels": first[1], "out_channels": last[0], "block_out_channels": widths,
            "layers_per_block": resnets, "cross_attention_dim": cross, "use_linear_projection": linear,
            "attention_head_dim": [width // 64 for width in widths] if linear else 8,
            "down_block_types": [f"{'CrossAttn' * yes}DownBlock2D" for yes in attends],
            "up_block_types": [f"{'CrossAttn' * yes}UpBlock2D" for yes in reversed(attends)]}


def translated(found: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNet's weights under the names of diffusers (the averaged ones where a checkpoint has both); a camera's layers
    become those of the class embedding."""
    if is_original(found):
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        found = found if any(name.startswith(PREFIX) for name in found) else {PREFIX + k: v for k, v in found.items()}
        named = convert_ldm_unet_checkpoint(dict(found), {**config, "class_embed_type": None}, extract_ema=True)
        camera = {f"{PREFIX}camera_embed.{old}.": f"class_embedding.{new}."
                  for old, new in (("0", "linear_1"), ("2", "linear_2"))}
    else:
        named, camera = dict(found), {"camera_proj.": "class_embedding."}
        named = {name: value for name, value in named.items() if not name.startswith("camera_proj.")}
    for old, new in camera.items():
        named |= {new + name.removeprefix(old): value for name, value in found.items() if name.startswith(old)}
    return named


def network(config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, where: str) -> nn.Module:
    """The UNet of a configuration with these weights: frozen, in evaluation mode, on the CPU."""
    from diffusers import UNet2DConditionModel

    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({name: value for name, value in config.items() if name in known})
    try:
        unet.load_state_dict({name: value.to(dtype) for name, value in weights.items()}, assign=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"model {where!r}: its weights do not fit its UNet ({detail})") from error
    return unet.eval().requires_grad_(False)
