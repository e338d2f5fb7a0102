"""A labelled grid of pictures as one file."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, TEXT = 6, 20  # pixels between pictures, and for a label


def contact_sheet(rows: Sequence[tuple[str, Sequence[Tensor]]], path: str | Path) -> None:
    """Writes pictures [H, W, 3] of one size, values in [0, 1], as PNG; each row has its label above it."""
    H, W = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    sheet = Image.new("RGB", (GAP + columns * (W + GAP), GAP + len(rows) * (TEXT + H + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for r, (label, pictures) in enumerate(rows):
        y = GAP + r * (TEXT + H + GAP)
        draw.text((GAP, y), label, "#222222", font)
        for c, picture in enumerate(pictures):
            pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
            sheet.paste(Image.fromarray(pixels), (GAP + c * (W + GAP), y + TEXT))
    sheet.save(path)
