"""The corpus on disk as batches of images and captions, and the tokenizer whose words are the corpus' words.

Shapes: N corpus views, B images of a batch, H = W = 64 pixels, L = TOKENS tokens; batches are [B, 3, H, W] in [0, 1].
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.corpus import (COLOURS, SHAPES, VIEWS, Layers, Shots, caption, draw_backgrounds, draw_shots, held_out,
                          trace)

VIEWS_PER_SHAPE, TOKENS = 2400, 16
PHRASES = (*VIEWS, "side view", "")  # every way to name a view, and not to
PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
PALETTE = torch.tensor(list(COLOURS.values()))


def traced(shape: str, shots: Shots) -> Tensor:
    """Returns the layers of views of `shape` as bytes [N, H, W, 5]: fixed rgb, named, alpha."""
    layers = []
    for part in torch.arange(len(shots.azimuth)).split(16):
        some = trace(shape, Shots(*(value[part] for value in vars(shots).values())))
        layers.append((torch.cat([some.fixed, some.named, some.alpha], dim=-1) * 255).round().byte())
    return torch.cat(layers)


def write_corpus(out: Path) -> None:
    """Writes out/corpus/SHAPE.pt: layers as bytes [N, H, W, 5] (fixed rgb, named, alpha) and the angles [N, 2]."""
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    for seed, shape in enumerate(SHAPES):
        path = out / "corpus" / f"{shape}.pt"
        if path.exists():
            continue
        shots = draw_shots(VIEWS_PER_SHAPE, torch.Generator().manual_seed(seed))
        torch.save({"layers": traced(shape, shots), "angles": torch.stack([shots.azimuth, shots.elevation], dim=-1)}, path)
        print(f"corpus: {shape}", flush=True)


@dataclass(frozen=True)
class Corpus:
    """All views: layers [N, H, W, 5] bytes, shape indices [N], angles [N, 2]; every 40th view is kept for tests."""

    layers: Tensor
    shape: Tensor
    angles: Tensor

    @staticmethod
    def load(out: Path) -> Corpus:
        files = [torch.load(out / "corpus" / f"{shape}.pt") for shape in SHAPES]
        shape = torch.arange(len(SHAPES)).repeat_interleave(VIEWS_PER_SHAPE)
        return Corpus(torch.cat([f["layers"] for f in files]), shape, torch.cat([f["angles"] for f in files]))

    def split(self, test: bool) -> Tensor:
        return torch.nonzero((torch.arange(len(self.shape)) % 40 == 39) == test)[:, 0]

    def paint(self, index: Tensor, colour: Tensor, generator: torch.Generator, solid: float = 1.0) -> Tensor:
        """Returns images [B, 3, H, W] of the views `index` in the colours (indices [B]) over random backgrounds;
        each image's opacity is drawn from [solid, 1]."""
        opacity = torch.empty(len(index), 1, 1, 1).uniform_(solid, 1, generator=generator)
        parts = self.layers[index].float() / 255 * opacity
        layers = Layers(parts[..., :3], parts[..., 3:4], parts[..., 4:])
        return layers.over(PALETTE[colour], draw_backgrounds(len(index), parts.shape[1], generator)).movedim(-1, 1)


def seen_colours(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a random colour index for each shape index [B] among those that are not held out for it."""
    allowed = torch.tensor([[colour not in held_out(s) for colour in COLOURS] for s in SHAPES]).float()
    return torch.multinomial(allowed[shape], 1, generator=generator)[:, 0]


def degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images [B, 3, H, W] of which 45 % look as early renders do: blurred, faded into a colour, or noisy."""
    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(images), *shape, generator=generator)

    kind = uniform(1, 1, 1)
    small = F.interpolate(images, scale_factor=float(0.25 + 0.5 * torch.rand((), generator=generator)), mode="area")
    soft = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    faded = torch.lerp(images, uniform(3, 1, 1), 0.7)
    noisy = images + 0.15 * torch.randn(images.shape, generator=generator) * uniform(1, 1, 1)
    chosen = torch.where(kind < 0.2, soft, torch.where(kind < 0.3, faded, torch.where(kind < 0.45, noisy, images)))
    return chosen.clamp(0, 1)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images [B, 3, H, W] zoomed, shifted, with other brightness and saturation, and partly `degraded`."""
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(images), *shape, generator=generator)

    zoom, shift = uniform(0.8, 1.25), uniform(-0.1, 0.1, 2)
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = zoom, zoom, shift
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    grey = moved.mean(dim=1, keepdim=True)
    coloured = torch.lerp(grey, moved, uniform(0.7, 1.15, 1, 1, 1)) * uniform(0.7, 1.2, 1, 1, 1)
    return degraded(coloured.clamp(0, 1), generator)


# ---- the words ----

def write_tokenizer(folder: Path) -> None:
    """Writes a CLIPTokenizer of bytes and the corpus' words: byte pairs are merged until every word is one token."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    captions = [caption(*pair, view) for pair in PAIRS for view in PHRASES]
    words = sorted({word for text in captions for word in text.replace(",", " ,").split()})
    splits, merges = [[*word[:-1], word[-1] + "</w>"] for word in words], []
    while pairs := Counter(pair for split in splits for pair in zip(split, split[1:])):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        splits = [_merged(split, merges[-1]) for split in splits]
    letters, joined = list(bytes_to_unicode().values()), ["".join(pair) for pair in merges]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))


def _merged(split: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in split:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def load_tokenizer(folder: Path) -> Callable[[list[str]], Tensor]:
    """Returns the function from captions to token ids [B, L]."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return lambda texts: tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def text_sizes(folder: Path) -> dict[str, int]:
    """Returns what a CLIPTextConfig has to know about the tokenizer in `folder`."""
    size = len(json.loads((folder / "vocab.json").read_text()))
    return {"vocab_size": size, "max_position_embeddings": TOKENS, "bos_token_id": size - 2, "eos_token_id": size - 1,
            "pad_token_id": size - 1}
