"""Models as one checkpoint file, with parameters named as in the code of latent diffusion (LDM).

The diffusers library translates the names. The autoencoder, encoders, tokenizer and scheduler are read from another model,
the `base`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.priors.networks import quiet
from mpiprop.priors.parts import Parts, defaults, tensors

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")  # of files, where there is none of that name
PREFIX = "model.diffusion_model."  # of the UNet
SIDE = 32  # of the latents that these models were trained at


@dataclass(frozen=True)
class Original:
    """The parts of a model in one checkpoint file: the UNet from the file, all others from `base`."""

    model: str
    base: Parts

    @cached_property
    def file(self) -> dict[str, Tensor]:
        """All tensors of the file, on the CPU, memory-mapped."""
        return tensors(Path(self.model).expanduser())

    def config(self, part: str, cls: type | None = None) -> dict[str, Any]:
        """The configuration of a part; the UNet's is read off its weights' shapes."""
        if part != "unet":
            return self.base.config(part, cls)
        return (defaults(cls) if cls else {}) | unet_config(self.file, self.model)

    def has(self, part: str) -> bool:
        """Whether the base model has such a part."""
        return self.base.has(part)

    def weights(self, part: str) -> tuple[list[Path], str]:
        """The files of a part, and what the user should know about them, if anything."""
        return ([Path(self.model)], "") if part == "unet" else self.base.weights(part)

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The weights of a part by name; the UNet's are all that the file holds."""
        return self.file if part == "unet" else self.base.tensors(part)

    def tokenizer(self, cls: type) -> Any:
        """The base model's tokenizer."""
        return self.base.tokenizer(cls)


def parts_of(model: str, variant: str | None, revision: str | None, builtin: str, base: str) -> Parts | Original:
    """Returns the parts of a model: "builtin", a checkpoint file, a folder or a hub id."""
    path = Path(model).expanduser()
    if path.is_file():
        return Original(model, Parts(base))
    if path.suffix in SUFFIXES and not path.is_dir():
        raise UserError(f"model {model!r}: there is no file {path}")
    return Parts(model, variant, revision, builtin)


def is_original(names: Mapping[str, Any]) -> bool:
    """Returns whether a UNet's parameters have LDM's names."""
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
        with quiet():
            named = convert_ldm_unet_checkpoint(dict(found), {**config, "class_embed_type": None}, extract_ema=True)
        camera = {f"{PREFIX}camera_embed.{old}.": f"class_embedding.{new}."
                  for old, new in (("0", "linear_1"), ("2", "linear_2"))}
    else:
        named, camera = dict(found), {"camera_proj.": "class_embedding."}
        named = {name: value for name, value in named.items() if not name.startswith("camera_proj.")}
    for old, new in camera.items():
        named |= {new + name.removeprefix(old): value for name, value in found.items() if name.startswith(old)}
    return named
