"""A labelled grid of pictures as one file."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mpiprop.io.files import atomic

GAP, TEXT = 6, 20  # pixels between pictures, and for a label


def contact_sheet(rows: Sequence[tuple[str, Sequence[Tensor]]], path: str | Path, abreast: int = 1) -> None:
    """Writes pictures [H, W, 3] of one size, values in [0, 1], as PNG; each row has its label above it.

    abreast: rows side by side
    """
    H, W = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    wide, high = columns * (W + GAP), TEXT + H + GAP
    sheet = Image.new("RGB", (GAP + min(abreast, len(rows)) * wide, GAP + -(-len(rows) // abreast) * high), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for r, (label, pictures) in enumerate(rows):
        x, y = GAP + r % abreast * wide, GAP + r // abreast * high
        draw.text((x, y), label, "#222222", font)
        for c, picture in enumerate(pictures):
            pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
            sheet.paste(Image.fromarray(pixels), (x + c * (W + GAP), y + TEXT))
    with atomic(path) as temporary:
        sheet.save(temporary)
