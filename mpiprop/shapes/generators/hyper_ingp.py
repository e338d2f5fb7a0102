"""Hyper-iNGP: one hash grid for all prompts, read by small networks that a hypernetwork makes from the text (ScaleDreamer,
Ma et al. 2024, after ATT3D, Lorraine et al. 2023).

Letters: N points, C channels of the encoding, H hidden.
"""

from typing import Literal

import torch
from torch import Tensor

from mpiprop.core.errors import positive
from mpiprop.core.streams import Streams
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.shapes.generators.base import Generator, Text
from mpiprop.shapes.generators.hypernetwork import HyperNetwork
from mpiprop.shapes.generators.sdf import GeneratedSDF


class HyperINGP(Generator):
    """A signed distance and features from a hash encoding shared by all prompts and two small networks of each prompt.

    radius: half side of the box that holds everything (world units)
    text_width: numbers of the pooled text embedding (1024 for Stable Diffusion 2.1)
    levels: grids in the pyramid, of 2 features each
    log2_table: binary logarithm of the most entries a grid may have
    base_resolution: cells a side of the coarsest grid
    growth: resolution of a grid over that of the next coarser one
    hidden: width of the hypernetwork's hidden layer and of the networks that it makes
    spectral_norm: divide the hypernetwork's layers by their largest singular value, as ATT3D does
    sphere: radius of the sphere that every object begins as (world units)
    backend: "torch" (any device) or "tcnn" (tiny-cuda-nn, CUDA), whose gradients differ in their last bits each time; the
        numbers mean the same; auto: torch
    """

    has_normals, makes = True, GeneratedSDF

    def __init__(self, rng: Streams, *, radius: float = 2.0, text_width: int = 1024, levels: int = 16, log2_table: int = 19,
                 base_resolution: int = 16, growth: float = 1.447269237440378, hidden: int = 64, spectral_norm: bool = False,
                 sphere: float = 0.5, backend: Literal["auto", "torch", "tcnn"] = "auto") -> None:
        super().__init__()
        positive(radius=radius, text_width=text_width, hidden=hidden)
        self.radius, self.text_width, self.sphere, self.hidden = radius, text_width, sphere, hidden
        self.encoding = HashEncoding(rng.of("encoding"), levels, log2_table, base_resolution, growth, backend)
        C = self.encoding.channels
        self.hypernetwork = HyperNetwork(rng.of("hypernetwork"), text_width, hidden,
                                         [(hidden, C), (1, hidden), (hidden, C), (3, hidden)], spectral_norm)

    def field(self, text: Text, rng: Streams | None) -> GeneratedSDF:
        into_sdf, sdf, into_features, features = self.hypernetwork(text.pooled)
        into = torch.cat([into_sdf, into_features])

        def raw(x: Tensor) -> Tensor:
            unit = torch.add(0.5, x.T, alpha=0.5 / self.radius).clamp(0, 1).contiguous()
            hidden = (into @ self.encoding(unit)).relu()
            return torch.cat([sdf @ hidden[:self.hidden], features @ hidden[self.hidden:]])
        return GeneratedSDF(raw, self.radius, self.sphere)
