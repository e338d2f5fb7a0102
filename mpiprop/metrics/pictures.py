"""Pictures as bytes [H, W, 3]: from files and from renders."""

from pathlib import Path

import numpy as np
from numpy import ndarray
from torch import Tensor

from mpiprop.core.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read(path: Path) -> ndarray:
    """The picture [H, W, 3] of a file, on white where it is transparent. Raises UserError if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            picture = file.convert("RGBA" if "transparency" in file.info or "A" in file.getbands() else "RGB")
        if picture.mode == "RGBA":
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: is not a picture that can be read: {error}") from None


def pixels(images: Tensor) -> ndarray:
    """Renders [B, H, W, 3] in [0, 1] as the bytes that a PNG file of them holds."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def resized(picture: ndarray, side: int) -> ndarray:
    """The picture with `side` pixels each way, by Pillow's bicubic filter."""
    from PIL import Image

    return picture if picture.shape[:2] == (side, side) else np.array(
        Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
