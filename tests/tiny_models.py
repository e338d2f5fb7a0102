"""Tiny random models of the real classes, in the real layout of a diffusers folder.

`python tests/tiny_models.py sd-v FOLDER` makes one. Kinds: "sd" (epsilon), "sd-v" (v-prediction), "sd-tiny-vae"
(AutoencoderTiny), "if" (six-channel pixel UNet, T5).
"""

import json
import sys
from pathlib import Path

import torch

WIDTH, TOKENS = 16, 16  # of the text embeddings; of a CLIP prompt
WORDS = ("a", "an", "red", "green", "blue", "mushroom", "chair", "view", "front", "side", "back", "overhead", "left",
         "right", "from", "above", ",")


def make(kind: str, folder: str | Path) -> Path:
    """The folder, filled with a model of that kind; the same kind always has the same weights."""
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (_deep_floyd if kind == "if" else _stable_diffusion)(kind, folder)
    return folder


def _stable_diffusion(kind: str, folder: Path) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 16), norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4).save_pretrained(folder / "unet")
    if kind == "sd-tiny-vae":
        vae = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                              num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    else:
        vae = AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16,
                            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    vae.save_pretrained(folder / "vae")
    text = CLIPTextConfig(vocab_size=128, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1,
                          num_attention_heads=2, max_position_embeddings=TOKENS, bos_token_id=0, eos_token_id=1,
                          pad_token_id=1)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    _clip_tokenizer(folder / "tokenizer")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1,
                  prediction_type="v_prediction" if kind == "sd-v" else "epsilon").save_pretrained(folder / "scheduler")


def _deep_floyd(kind: str, folder: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(16, 16), norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=WIDTH, encoder_hid_dim=WIDTH, encoder_hid_dim_type="text_proj", addition_embed_type="text",
        addition_embed_type_num_heads=4, attention_head_dim=4, time_embedding_type="positional", act_fn="gelu",
        class_embed_type=None, resnet_time_scale_shift="scale_shift").save_pretrained(folder / "unet")
    text = T5Config(vocab_size=128, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(text).save_pretrained(folder / "text_encoder")
    _t5_tokenizer(folder / "tokenizer")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    scheduler.save_pretrained(folder / "scheduler")


def _clip_tokenizer(folder: Path) -> None:
    """CLIP's own files: every letter is a token and so are the WORDS, reached by merging letters from the left."""
    folder.mkdir(parents=True)
    vocabulary, merges = {"<|startoftext|>": 0, "<|endoftext|>": 1}, []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for piece in pieces:
            vocabulary.setdefault(piece, len(vocabulary))
        left = pieces[0]
        for piece in pieces[1:]:
            if f"{left} {piece}" not in merges:
                merges.append(f"{left} {piece}")
            left += piece
            vocabulary.setdefault(left, len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "pad_token": "<|endoftext|>"}))


def _t5_tokenizer(folder: Path) -> None:
    from transformers import T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), (",", -1.0),
                  *((f"▁{word}", -1.0) for word in WORDS)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)


if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2])
