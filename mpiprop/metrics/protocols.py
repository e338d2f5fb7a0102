"""How the papers measure: which views are rendered, what is cut from them, and which CLIP model sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import radians

import torch
from numpy import ndarray
from torch import Tensor

from mpiprop.core.streams import Streams
from mpiprop.views.cameras import Views, turntable

from mpiprop.metrics import PROTOCOLS
from mpiprop.metrics.judge import Judge
from mpiprop.metrics.pictures import resized

BILINEAR = 2  # of Pillow's filters


@dataclass(frozen=True)
class Protocol:
    """What a paper and its authors' script say; distance and field of view stay those of the system."""

    clip: str  # id of the judge
    elevation_deg: float
    canvas: int = 0  # pixels a side that every render is resized to before anything else; 0: as it is
    resample: int | None = None  # Pillow's filter of the judge's resizing, where it is not the judge's own
    crops: int = 0  # random squares of each render that CLIP-FID sees; 0: the protocol has no CLIP-FID
    crop: int = 0  # their side (pixels of the canvas)
    views: int = 120  # at even azimuths
    size: int = 512  # of a render (pixels a side)

    def cameras(self, like: Views) -> Views:
        """The protocol's views at the distance and with the field of view of `like`, from the front on."""
        return turntable(self.views, radians(self.elevation_deg), float(like.distance[0]), float(like.fovy[0]),
                         (self.size, self.size))

    def features(self, renders: Sequence[ndarray], judge: Judge) -> Tensor:
        """Features [B, E] of whole renders [H, W, 3] of bytes, for similarity and R-Precision."""
        return judge.features([self._put(render) for render in renders], self.resample)

    def cut(self, render: ndarray, view: int, seed: int) -> list[ndarray]:
        """The random squares of the render of a view, each enlarged to the canvas; the same places in every object."""
        corners = torch.randint(self.canvas - self.crop, (self.crops, 2), generator=Streams(seed, view)("evaluate.crops"))
        whole = self._put(render)
        return [resized(whole[y:y + self.crop, x:x + self.crop], self.canvas) for x, y in corners.tolist()]

    def _put(self, render: ndarray) -> ndarray:
        return resized(render, self.canvas) if self.canvas else render


BY_NAME = dict(zip(PROTOCOLS, (
    # appendix D; crops and filters: dreamgaussian/evaluate.py of the release, clean-fid's clip_vit_b_32
    Protocol("openai/clip-vit-base-patch32", 12.0, canvas=512, crops=20, crop=300),
    # evaluation/CLIP/evaluation_amortized.py of the release, its evaluation cameras
    Protocol("openai/clip-vit-large-patch14", 15.0, resample=BILINEAR))))
