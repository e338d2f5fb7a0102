"""A network of a model: its class, its configuration and its weights, checked against each other.

The network is built without weights first, so that names and shapes are compared without reading any.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mpiprop.core.errors import UserError
from mpiprop.priors.hub import first_line

RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention of old autoencoders


@dataclass(frozen=True)
class Network:
    """A network of diffusers or transformers; nothing is read by the constructor."""

    cls: type  # a model class of one of the libraries
    config: Callable[[], Mapping[str, Any]]
    tensors: Callable[[], Mapping[str, Tensor]]  # the weights, mapped from their files
    where: str  # the model and its part, for messages

    def verify(self) -> None:
        """Raises UserError where names or shapes of the weights do not fit the network. Reads no weights."""
        found = {name: value.to("meta") for name, value in self.tensors().items()}
        if self._of_transformers:
            self._filled(found, torch.float32, "meta")
        else:
            wanted = {name: tuple(value.shape) for name, value in self.blank.state_dict().items()}
            self._compare(wanted, {name: tuple(value.shape) for name, value in self._named(found).items()})

    def bytes(self, dtype: torch.dtype) -> int:
        """Returns the bytes of the parameters in dtype."""
        return sum(parameter.numel() for parameter in self.blank.parameters()) * dtype.itemsize

    def load(self, dtype: torch.dtype) -> nn.Module:
        """Returns the network with its weights in dtype: frozen, in evaluation mode, on the CPU."""
        found = self.tensors()
        if self._of_transformers:
            module = self._filled(found, dtype, "cpu")
        else:
            named, module = self._named(found), self._blank()
            self._compare({name: tuple(value.shape) for name, value in module.state_dict().items()},
                          {name: tuple(value.shape) for name, value in named.items()})
            module.load_state_dict({name: value.to(dtype) for name, value in named.items()}, assign=True)
        return module.eval().requires_grad_(False)

    @cached_property
    def blank(self) -> nn.Module:
        """Returns the network on the meta device."""
        return self._blank()

    def _blank(self) -> nn.Module:
        try:
            with torch.device("meta"), quiet():
                return self.cls(self._config) if self._of_transformers else self.cls.from_config(dict(self.config()))
        except Exception as error:  # whatever a class makes of numbers that are none of its own
            raise UserError(f"{self.where}: its configuration makes no {self.cls.__name__} ({first_line(error)}); give the one "
                            "that came with the model") from error

    @property
    def _of_transformers(self) -> bool:
        return self.cls.__module__.startswith("transformers.")

    @property
    def _config(self) -> Any:
        return self.cls.config_class.from_dict(dict(self.config()))

    def _named(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights by the names of today's diffusers."""
        old = re.compile(rf"(.*attentions\.\d+\.)({'|'.join(RENAMED)})(\.(?:weight|bias))")
        return {old.sub(lambda m: m[1] + RENAMED[m[2]] + m[3], name): value for name, value in found.items()}

    def _filled(self, found: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> nn.Module:
        """The network by the library that knows its weights' names of all times, and which it keeps in full precision."""
        try:
            with quiet():
                module, loading = self.cls.from_pretrained(
                    None, config=self._config, state_dict=dict(found), dtype=dtype, device_map=device,
                    output_loading_info=True, ignore_mismatched_sizes=True)
        except Exception as error:  # the library raises no finer ones
            raise UserError(f"{self.where}: does not load as {self.cls.__name__} ({first_line(error)}); give the configuration "
                            "and weights of one model") from error
        wanted = {name: () for name in loading["missing_keys"]} | {name: tuple(b) for name, _, b in loading["mismatched_keys"]}
        self._compare(wanted, {name: tuple(a) for name, a, _ in loading["mismatched_keys"]})
        return module

    def _compare(self, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
        """Raises UserError where names or shapes differ."""
        wrong = [f"{name} is {list(found[name])}, not {list(shape)}" for name, shape in wanted.items()
                 if name in found and found[name] != shape]
        wrong += [f"{name} is missing" for name in wanted if name not in found]
        wrong += [f"{name} is not of it" for name in found if name not in wanted]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UserError(f"{self.where}: its weights are not those of its configuration ({wrong[0]}{more}); "
                            "fetch both from one model")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what the libraries print while they load; errors arrive as exceptions."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    of_transformers.disable_progress_bar()
    for library, _ in before:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)
