"""The corpus on disk as batches of images and captions, and the tokenizer whose words are the corpus' words.

Shapes: N corpus views, B images of a batch, H = W = SIZE pixels, L = TOKENS tokens; batches are [B, 3, H, W] in [0, 1].
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.corpus.captions import VIEWS, caption, coarse_phrase, view_phrase
from mpiprop.corpus.colours import LOOKS, matrix
from mpiprop.corpus.objects import NAMES, RADIUS, SCENES, held_out, thing
from tools.tracer import Layers, Shots, Tracer, toward
from tools.training import DEVICE

SIZE, TOKENS = 64, 16
ALONE, ON_TABLE = 1280, 320  # views of each object; a scene has as many
PHRASES = (*VIEWS, "side view", "")  # every way to name a view, and not to
PAIRS = tuple((name, look) for name in NAMES for look in LOOKS)
PALETTE = torch.stack([matrix(look) for look in LOOKS])


# ---- views ----

def draw_shots(count: int, generator: torch.Generator) -> Shots:
    """Returns cameras around an object: any azimuth, elevation in [-15, 50] deg for 75 % and [50, 85] else."""
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    azimuth, low, high = uniform(-math.pi, math.pi), uniform(-15, 50), uniform(50, 85)
    elevation = torch.deg2rad(torch.where(torch.rand(count, generator=generator) < 0.75, low, high))
    near = toward(azimuth, elevation) + 0.35 * torch.randn(count, 3, generator=generator)
    return Shots(azimuth, elevation, uniform(1.6, 2.0), torch.deg2rad(uniform(40, 60)),
                 0.02 * torch.randn(count, 3, generator=generator), F.normalize(near, dim=-1), uniform(0.35, 0.5))


def draw_inside(count: int, generator: torch.Generator) -> Shots:
    """Returns cameras inside a scene that look through its middle: distance 0.1-0.5, elevation in [-5, 25] deg, field
    of view 60-90 deg, light from above them."""
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    azimuth, elevation = uniform(-math.pi, math.pi), torch.deg2rad(uniform(-5, 25))
    spread = 0.2 * torch.randn(count, 3, generator=generator)
    light = toward(azimuth, elevation) + torch.tensor([0.0, 0.0, 0.5]) + spread
    return Shots(azimuth, elevation, uniform(0.1, 0.5), torch.deg2rad(uniform(60, 90)),
                 0.05 * torch.randn(count, 3, generator=generator), F.normalize(light, dim=-1), uniform(0.4, 0.55))


def draw_backgrounds(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns backgrounds [B, H, W, 3]: 40 % white, 40 % a plain colour, 20 % a gradient from top to bottom."""
    where = generator.device
    kind = torch.rand(count, 1, 1, generator=generator, device=where)
    ends = torch.rand(count, 2, 3, generator=generator, device=where)
    ends = torch.where(kind < 0.4, 1.0, torch.where(kind < 0.8, ends[:, :1], ends))
    ramp = torch.linspace(0, 1, size, device=where)[None, :, None]
    return torch.lerp(ends[:, :1], ends[:, 1:], ramp)[:, :, None].expand(count, size, size, 3)


def traced(tracer: Tracer, shots: Shots) -> Tensor:
    """Returns the layers of views as bytes [N, H, W, layers]."""
    found, at_once = [], 16 if DEVICE == "cpu" else 256
    for i in range(0, len(shots.azimuth), at_once):
        found.append((255 * tracer.trace(shots[i:i + at_once].to(DEVICE), SIZE).values).round().byte().cpu())
    return torch.cat(found)


def tracer_of(name: str, on_table: bool) -> Tracer:
    return Tracer(thing(name, on_table), 1.6 if name in SCENES else RADIUS, DEVICE)


def write_corpus(out: Path) -> None:
    """Writes out/corpus/NAME.pt: layers as bytes [N, H, W, layers] and angles [N, 2]; those on a table are the last."""
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(NAMES):
        path, generator = out / "corpus" / f"{name}.pt", torch.Generator().manual_seed(seed)
        if path.exists():
            continue
        if name in SCENES:
            kinds = [(False, draw_inside(ALONE + ON_TABLE, generator))]
        else:
            kinds = [(False, draw_shots(ALONE, generator)), (True, draw_shots(ON_TABLE, generator))]
        angles = torch.cat([torch.stack([shots.azimuth, shots.elevation], dim=-1) for _, shots in kinds])
        layers = torch.cat([traced(tracer_of(name, on_table), shots) for on_table, shots in kinds])
        torch.save({"layers": layers, "angles": angles}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        print(f"corpus: {name}", flush=True)


def draw_looks(name: Tensor, generator: torch.Generator, seen: bool) -> Tensor:
    """Returns a random look for each of the names [B]; `seen`: none that is held out for it."""
    allowed = torch.tensor([[not (seen and look in held_out(name)) for look in LOOKS] for name in NAMES]).float()
    return torch.multinomial(allowed[name], 1, generator=generator)[:, 0]


@dataclass(frozen=True)
class Drawn:
    """What a batch shows: views [B] of the corpus, looks [B], looks of the tables [B] (-1 where there is none)."""

    view: Tensor
    look: Tensor
    table: Tensor

    def __getitem__(self, part: Tensor | slice) -> Drawn:
        return Drawn(self.view[part], self.look[part], self.table[part])


@dataclass(frozen=True)
class Corpus:
    """All views: a file of layers for each name; names [N], rows in their files [N], angles [N, 2], whether on a table
    [N]; every 40th view is kept for tests."""

    files: list[Tensor]
    name: Tensor
    row: Tensor
    angles: Tensor
    on_table: Tensor

    @staticmethod
    def load(out: Path) -> Corpus:
        files = [torch.load(out / "corpus" / f"{name}.pt", mmap=DEVICE == "cpu") for name in NAMES]
        rows, scene = torch.arange(ALONE + ON_TABLE), torch.tensor([name in SCENES for name in NAMES])
        names = torch.arange(len(NAMES)).repeat_interleave(len(rows))
        return Corpus([file["layers"].to(DEVICE) for file in files], names, rows.repeat(len(NAMES)),
                      torch.cat([file["angles"] for file in files]), ((rows >= ALONE) & ~scene[:, None]).flatten())

    def split(self, test: bool) -> Tensor:
        return torch.nonzero((torch.arange(len(self.name)) % 40 == 39) == test)[:, 0]

    def draw(self, view: Tensor, generator: torch.Generator, seen: bool) -> Drawn:
        """Returns the views [B] in random looks; `seen`: none that is held out for what is seen."""
        look = draw_looks(self.name[view], generator, seen)
        table = draw_looks(torch.full_like(look, NAMES.index("table")), generator, seen)
        return Drawn(view, look, torch.where(self.on_table[view], table, -1))

    def layers(self, view: Tensor) -> Layers:
        """Returns the layers of views [B]."""
        chosen = [self.files[name][row] for name, row in zip(self.name[view].tolist(), self.row[view].tolist())]
        return Layers(torch.stack(chosen).float() / 255)

    def paint(self, drawn: Drawn, generator: torch.Generator, solid: float = 1.0) -> Tensor:
        """Returns images [B, 3, H, W] over random backgrounds, on the generator's device; each image's opacity is drawn
        from [solid, 1]."""
        where, layers, palette = generator.device, self.layers(drawn.view), PALETTE.to(generator.device)
        opacity = torch.empty(len(drawn.view), 1, 1, 1, device=where).uniform_(solid, 1, generator=generator)
        faded, table = Layers(layers.values * opacity), palette[drawn.table.clamp_min(0).to(where)]
        behind = draw_backgrounds(len(drawn.view), SIZE, generator)
        return faded.over(palette[drawn.look.to(where)], behind, table).movedim(-1, 1)

    def captions(self, drawn: Drawn, phrases: list[str]) -> list[str]:
        """Returns what a batch shows in words, each with its phrase for the view."""
        told = zip(self.name[drawn.view].tolist(), drawn.look.tolist(), drawn.table.tolist(), phrases)
        return [caption(NAMES[name], LOOKS[look], phrase, LOOKS[table] if table >= 0 else "")
                for name, look, table, phrase in told]

    def phrases(self) -> list[tuple[str, str]]:
        """Returns the fine and the coarse phrase of every view."""
        return [(view_phrase(*angles), coarse_phrase(*angles)) for angles in self.angles.tolist()]


def degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images [B, 3, H, W] of which 45 % look as early renders do: blurred, faded into a colour, or noisy."""
    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(images), *shape, generator=generator, device=generator.device)

    kind, factor = uniform(1, 1, 1), float(0.25 + 0.5 * uniform()[0])
    small = F.interpolate(images, scale_factor=factor, mode="area")
    soft = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    faded = torch.lerp(images, uniform(3, 1, 1), 0.7)
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    noisy = images + 0.15 * noise * uniform(1, 1, 1)
    chosen = torch.where(kind < 0.2, soft, torch.where(kind < 0.3, faded, torch.where(kind < 0.45, noisy, images)))
    return chosen.clamp(0, 1)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images [B, 3, H, W] zoomed, shifted, with other brightness and saturation, and partly `degraded`."""
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(images), *shape, generator=generator, device=generator.device)

    zoom, shift = uniform(0.8, 1.25), uniform(-0.1, 0.1, 2)
    affine = torch.zeros(len(images), 2, 3, device=generator.device)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = zoom, zoom, shift
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    grey = moved.mean(dim=1, keepdim=True)
    coloured = torch.lerp(grey, moved, uniform(0.85, 1.1, 1, 1, 1)) * uniform(0.8, 1.15, 1, 1, 1)
    return degraded(coloured.clamp(0, 1), generator)


# ---- the words ----

def write_tokenizer(folder: Path) -> None:
    """Writes a CLIPTokenizer of bytes and the corpus' words: byte pairs are merged until every word is one token."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    captions = [caption(*pair, view, table) for pair in PAIRS for view in PHRASES for table in ("", LOOKS[0])]
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
