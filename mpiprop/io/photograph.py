"""A picture file as the Reference that an object is made from: read, freed from its background, brought to the middle.

Beside NAME_rgba.png (or NAME.png) may lie NAME_depth.png, brighter where farther, and NAME_normal.png: (1 - n) / 2 of the
normal's parts towards the viewer, upwards and to the left, as single-view estimators write OpenCV's axes in BGR.
Letters: H x W pixels of the file, S pixels a side of what is returned.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mpiprop.config.schema import Picture
from mpiprop.core.errors import UserError
from mpiprop.views.reference import Pose, Reference, unmultiplied

DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # modes of more than 8 bits a channel


def read(path: str, about: Picture) -> Reference:
    """The picture at `path`, prepared as `about` says.

    Raises UserError for a file that is no picture, has nothing opaque in it, lacks an alpha channel where nothing can find
    the object, or is not the one whose sha256 `about` names.
    """
    files = {"": Path(path)} | {kind: found for kind in ("depth", "normal") if (found := _beside(Path(path), kind)).is_file()}
    digest = hashlib.sha256(b"".join(hashlib.sha256(_bytes(file)).digest() for file in files.values())).hexdigest()
    if about.sha256 not in (None, digest):
        raise UserError(f"image={path}: another picture than the one whose reference.sha256 the configuration has")
    rgba = _rgba(path)
    if not (solid := rgba[..., 3] > 0.5).any():
        raise UserError(f"image={path}: there is nothing in it, all of it is transparent")
    frame = _frame(solid, about.fill)
    picture = _framed(torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1), frame, about.size)
    extra = {kind: _framed(_as_large(_pixels(str(file), "L" if kind == "depth" else "RGB"), rgba, file), frame, about.size)
             for kind, file in files.items() if kind}
    if "normal" in extra:
        extra["normal"] = 1 - 2 * extra["normal"]
    pose = Pose.front(about.elevation_deg, about.distance, about.fovy_deg)
    return Reference(**vars(pose), rgba=unmultiplied(picture), sha256=digest, depth=extra.get("depth"),
                     normal=extra.get("normal"))


def _beside(path: Path, kind: str) -> Path:
    return path.parent / f"{path.stem.removesuffix('_rgba')}_{kind}.png"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"image={path}: cannot be read: {error.strerror}") from None


def _open(path: str) -> Image.Image:
    """The picture at `path`, upright."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image={path}: not a picture that can be read: {str(error).splitlines()[0]}") from None
    if image.mode in DEEP:
        raise UserError(f"image={path}: has more than 8 bits a channel; save it as an 8-bit PNG")
    return image


def _pixels(path: str, mode: str) -> Tensor:
    """The picture [H, W, C] in [0, 1] in PIL's mode."""
    pixels = torch.from_numpy(np.array(_open(path).convert(mode))).float() / 255
    return pixels.reshape(*pixels.shape[:2], -1)


def _rgba(path: str) -> Tensor:
    """Colour and opacity [H, W, 4], the latter from the file where it has any, else found by rembg."""
    image = _open(path)
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        if rgba[..., 3].min() < 255:
            return torch.from_numpy(rgba).float() / 255
    return torch.from_numpy(np.array(_remover(path)(image.convert("RGB")).convert("RGBA"))).float() / 255


def _remover(path: str) -> Any:
    """A function that makes the background of a picture transparent."""
    try:
        import rembg
    except (ImportError, SystemExit):  # it exits where it lacks a package of its own
        raise UserError(f"image={path}: has a background and no transparency: give an RGBA picture, or "
                        "pip install 'mpiprop[image]' to have the background removed") from None

    def remove(image: Image.Image) -> Image.Image:
        try:
            return rembg.remove(image)
        except Exception as error:
            raise UserError(f"image={path}: rembg did not remove the background ({type(error).__name__}: "
                            f"{str(error).splitlines()[0] if str(error) else ''}); give an RGBA picture") from error
    return remove


def _as_large(picture: Tensor, as_: Tensor, path: Path) -> Tensor:
    if picture.shape[:2] != as_.shape[:2]:
        sizes = ["{1} x {0}".format(*one.shape) for one in (picture, as_)]
        raise UserError(f"{path}: is {sizes[0]} pixels, the picture beside it {sizes[1]}; make them the same")
    return picture


def _frame(solid: Tensor, fill: float) -> tuple[float, float, float]:
    """Top, left and side (pixels) of the square in which the object [H, W] has the middle and the share `fill`; with 0 the
    square around the whole file."""
    if not fill:
        H, W = solid.shape
        longest = max(H, W)
        return (H - longest) / 2, (W - longest) / 2, longest
    rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
    low, high = (torch.stack([rows[end], columns[end]]) for end in (0, -1))
    side = float((high - low + 1).max()) / fill
    top, left = ((low + high + 1) / 2 - side / 2).tolist()
    return top, left, side


def _framed(picture: Tensor, frame: tuple[float, float, float], size: int) -> Tensor:
    """The square `frame` of a picture [H, W, C], zero where it lacks pixels, with `size` pixels a side."""
    top, left = round(frame[0]), round(frame[1])
    side = max(1, round(frame[2]))
    H, W = picture.shape[:2]
    cut = pad(picture.movedim(-1, 0)[None], (-left, left + side - W, -top, top + side - H))
    if side == size:
        return cut[0].movedim(0, -1)
    return interpolate(cut, (size, size), mode="bilinear", antialias=True)[0].movedim(0, -1).clamp(0, 1)
