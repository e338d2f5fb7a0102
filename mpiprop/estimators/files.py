"""A frozen network that is a model of its own: config.json and weights at the top of a folder or a repository."""

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import nn

from mpiprop.priors.networks import Network
from mpiprop.priors.parts import Parts


class FromFiles:
    """A network in float32: gradients through it are small."""

    vocabulary = None

    def __init__(self, device: torch.device | str, parts: Parts) -> None:
        self.device, self.parts = torch.device(device), parts

    def architecture(self) -> type:
        """Returns the network's class."""
        raise NotImplementedError

    def verify(self, strings: Sequence[str] = ()) -> list[str]:
        """Checks the files. Returns a note where a file was taken instead of another. Raises UserError for one that is
        missing, damaged or of another model."""
        note = self.parts.weights("")[1]
        self.network.verify()
        return [note] if note else []

    def weight_bytes(self) -> int:
        """Returns the bytes of the weights."""
        return self.network.bytes(torch.float32)

    @cached_property
    def network(self) -> Network:
        """Returns the network, nothing of which is read yet."""
        return Network(self.architecture(), partial(self.parts.config, ""), partial(self.parts.tensors, ""),
                       f"model {self.parts.model!r}")

    @cached_property
    def module(self) -> nn.Module:
        """Returns the network with its weights, on the device."""
        return self.network.load(torch.float32).to(self.device)
