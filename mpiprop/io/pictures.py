"""Pictures and films as files: PNG, GIF, MP4 (with ffmpeg).

Letters: B pictures, H x W pixels; colours in [0, 1].
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image
from torch import Tensor

from mpiprop.core.errors import RunError, UserError
from mpiprop.io.files import atomic


def png(picture: Tensor, path: str | Path) -> None:
    """Writes a picture [H, W, 3] or [H, W, 4]."""
    with atomic(path) as temporary:
        Image.fromarray(_bytes(picture)).save(temporary)


def film(frames: Tensor, path: str | Path, fps: int = 20) -> None:
    """Writes frames [B, H, W, 3] as an endless GIF or an H.264 MP4, by the path's suffix.

    Raises UserError for another suffix, and for MP4 where there is no ffmpeg.
    """
    writers = {".gif": _gif, ".mp4": _mp4}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise UserError(f"{path}: a film is written as {' or '.join(writers)}, not {suffix or 'without a suffix'}")
    with atomic(path) as temporary:
        writers[suffix](_bytes(frames), temporary, fps)


def has_ffmpeg() -> bool:
    """Whether films can be written as MP4 here."""
    return shutil.which("ffmpeg") is not None


def _bytes(picture: Tensor) -> ndarray:
    return (picture.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def _gif(frames: ndarray, path: Path, fps: int) -> None:
    """One palette for all frames, drawn from a strip of some of them: palettes of their own would flicker."""
    some = frames[np.linspace(0, len(frames) - 1, min(len(frames), 12)).astype(int)]
    palette = Image.fromarray(np.concatenate(some)).quantize(256, Image.Quantize.MEDIANCUT)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _mp4(frames: ndarray, path: Path, fps: int) -> None:
    if not has_ffmpeg():
        raise UserError(f"{path.suffix[1:]} needs ffmpeg on PATH; install it or take --format gif")
    _, H, W, _ = frames.shape
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"  # the chroma of yuv420p is at half resolution
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{W}x{H}", "-r", str(fps), "-i", "-"]
    target = ["-vf", even, "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart", str(path)]
    command = ["ffmpeg", "-v", "error", "-y", *source, *target]
    made = subprocess.run(command, input=frames.tobytes(), capture_output=True, process_group=0)  # out of reach of Ctrl-C
    if made.returncode:
        raise RunError(f"{path.name}: ffmpeg failed: {made.stderr.decode(errors='replace').strip().splitlines()[-1]}")
