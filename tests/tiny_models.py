"""Tiny random models of the real classes, in the real layout of a diffusers folder.

`python tests/tiny_models.py sd-v FOLDER` makes one. Kinds: "sd" (epsilon), "sd-v" (v-prediction), "sd-tiny-vae"
(AutoencoderTiny), "if" (six-channel pixel UNet, T5), "zero123" (shown a picture), "mvdream" (told cameras); at the top of
their folders "dpt", "depth-anything" and "taesd".
`original` gives a UNet's weights under the names of latent diffusion; `disc` is the picture that Zero-1-to-3 is shown.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

UNET = {"sample_size": 8, "out_channels": 4, "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
WIDTH, TOKENS = 16, 16  # of the text embeddings; of a CLIP prompt
WORDS = ("a", "an", "red", "green", "blue", "mushroom", "chair", "view", "front", "side", "back", "overhead", "left",
         "right", "from", "above", ",")


def make(kind: str, folder: str | Path) -> Path:
    """The folder, filled with a model of that kind; the same kind always has the same weights."""
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        {"if": _deep_floyd, "zero123": _zero123, "dpt": _depth, "depth-anything": _depth, "taesd": _decoder}.get(
            kind, _stable_diffusion)(kind, folder)
    return folder


def disc(path: Path) -> Path:
    """The file, with a picture of an orange disc on a transparent ground."""
    picture = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(picture).ellipse((8, 4, 30, 35), fill="orange")
    picture.save(path)
    return path


def _stable_diffusion(kind: str, folder: Path) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    told = {"block_out_channels": (16, 16), "norm_num_groups": 4, "attention_head_dim": 4}
    if kind == "mvdream":  # as Stable Diffusion 2: heads 64 wide, linear projections
        told = {"block_out_channels": (64, 64), "attention_head_dim": (1, 1), "use_linear_projection": True,
                "class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    UNet2DConditionModel(**UNET, in_channels=4, **told).save_pretrained(folder / "unet")
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
    clip_tokenizer(folder / "tokenizer")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1,
                  prediction_type="v_prediction" if kind == "sd-v" else "epsilon").save_pretrained(folder / "scheduler")


def _zero123(kind: str, folder: Path) -> None:
    """A tiny Stable Diffusion 1 (eight heads) with a picture's channels and encoder, without text."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    _stable_diffusion("sd", folder)
    for part in ("text_encoder", "tokenizer", "unet"):
        shutil.rmtree(folder / part)
    unet = UNet2DConditionModel(**UNET, in_channels=8, block_out_channels=(32, 64), attention_head_dim=8)
    unet.save_pretrained(folder / "unet")
    eye = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=12,
                           patch_size=4, projection_dim=12)
    CLIPVisionModelWithProjection(eye).save_pretrained(folder / "image_encoder")
    (folder / "cc_projection").mkdir()
    save_file({"projection.weight": torch.randn(WIDTH, 16), "projection.bias": torch.randn(WIDTH)},
              folder / "cc_projection" / "diffusion_pytorch_model.safetensors")


def _depth(kind: str, folder: Path) -> None:
    from transformers import (DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTConfig,
                              DPTForDepthEstimation)

    if kind == "dpt":
        model = DPTForDepthEstimation(DPTConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8,
            backbone_out_indices=[0, 1, 2, 3], reassemble_factors=[2, 1, 0.5, 0.25], neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8, readout_type="ignore", use_auxiliary_head=False,
            use_batch_norm_in_fusion_residual=False))
        last = model.head.head[-2]
    else:
        eye = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=1, image_size=28,
                           patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
        model = DepthAnythingForDepthEstimation(DepthAnythingConfig(
            backbone_config=eye, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
            head_hidden_size=8))
        last = model.head.conv3
    for weight in (parameter for parameter in model.parameters() if parameter.ndim > 1):
        torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)  # as drawn, a picture would hardly matter
    torch.nn.init.constant_(last.bias, 2.0)  # what comes out is no less than 0: not to be 0 everywhere
    model.save_pretrained(folder)


def _decoder(kind: str, folder: Path) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                    num_decoder_blocks=(1, 1)).save_pretrained(folder)


def original(state: dict[str, torch.Tensor], levels: int = 2, layers: int = 1) -> dict[str, torch.Tensor]:
    """A UNet's weights with the names that they have in the code of latent diffusion, which counts blocks through."""
    ends = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "class_embedding.linear_1": "camera_embed.0", "class_embedding.linear_2": "camera_embed.2",
            "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    inside = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    blocks = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
              "mid_block.resnets.1": "middle_block.2"}
    for b in range(levels):
        for r in range(layers + 1):
            down, up = 1 + b * (layers + 1) + r, b * (layers + 1) + r
            attended = f"up_blocks.{b}.attentions.{r}." in " ".join(state)
            blocks |= {f"down_blocks.{b}.resnets.{r}": f"input_blocks.{down}.0", f"up_blocks.{b}.resnets.{r}":
                       f"output_blocks.{up}.0", f"down_blocks.{b}.attentions.{r}": f"input_blocks.{down}.1",
                       f"up_blocks.{b}.attentions.{r}": f"output_blocks.{up}.1"}
        blocks |= {f"down_blocks.{b}.downsamplers.0.conv": f"input_blocks.{down}.0.op",
                   f"up_blocks.{b}.upsamplers.0.conv": f"output_blocks.{up}.{1 + attended}.conv"}

    def renamed(name: str) -> str:
        for old, new in (blocks | ends).items():
            if name.startswith(old + "."):
                first, _, rest = name.removeprefix(old + ".").partition(".")
                return f"{new}.{inside.get(first, first) if 'resnets' in old else first}{'.' * bool(rest)}{rest}"
        raise KeyError(name)
    return {renamed(name): value for name, value in state.items()}


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


def clip_tokenizer(folder: Path, length: int = TOKENS) -> None:
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
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>"}))


def _t5_tokenizer(folder: Path) -> None:
    from transformers import T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), (",", -1.0),
                  *((f"▁{word}", -1.0) for word in WORDS)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)


def spiece(folder: Path) -> None:
    """The same words for T5 in the file of SentencePiece that its old repositories have."""
    from sentencepiece import sentencepiece_model_pb2

    kinds = {"<unk>": 2, "<pad>": 3, "</s>": 3}  # of the format: unknown, control; else normal
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 1  # unigram
    for piece in ("<pad>", "</s>", "<unk>", "▁", ",", *(f"▁{word}" for word in WORDS)):
        model.pieces.add(piece=piece, score=0.0 if piece in kinds else -1.0, type=kinds.get(piece, 1))
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100, "eos_token": "</s>",
         "unk_token": "<unk>", "pad_token": "<pad>"}))


if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2])
