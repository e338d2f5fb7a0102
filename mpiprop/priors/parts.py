"""Files of models of diffusers and transformers: built-in, in a local folder, or on the hub.

No code of a model's author runs and pickles are read without executing them. Every failure is one line that says what to do.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.priors import pickles
from mpiprop.priors.hub import Hub, first_line

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
BUILTIN = WEIGHTS / "prior"
CONFIGS = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}
FILES = (("diffusion_pytorch_model", "safetensors"), ("model", "safetensors"),
         ("diffusion_pytorch_model", "bin"), ("pytorch_model", "bin"))  # of a part's weights, the first that is there
KINDS = "give a Stable Diffusion 1 or 2, a DeepFloyd IF, a Zero-1-to-3 or an MVDream"


@dataclass(frozen=True)
class Parts:
    """The parts of one diffusion model, by their subfolders (unet, vae, text_encoder, tokenizer, scheduler, ...).

    What a built-in model has in common with the built-in text prior is stored there alone.
    """

    model: str  # "builtin", a folder in the diffusers layout, or a hub id
    variant: str | None = None  # of the weight files, such as "fp16"
    revision: str | None = None  # of the hub repository
    builtin: str = BUILTIN.name  # which of the built-in models

    def find(self, part: str, name: str) -> Path | None:
        """Returns the path of a file of a part, fetched if the model is on the hub; None if it has no such file."""
        if isinstance(place := self._place, Hub):
            return place.find(f"{part}/{name}" if part else name)
        if self.model == "builtin" and not (place / part).is_dir():
            place = BUILTIN
        return path if (path := place / part / name).is_file() else None

    def has(self, part: str) -> bool:
        """Returns whether the model has such a part: its configuration, or its weights."""
        return self.find(part, CONFIGS.get(part, "config.json")) is not None or bool(self._files(part, None))

    def config(self, part: str, cls: type | None = None) -> dict[str, Any]:
        """The configuration of a part. With its class, the class's own defaults stand where the file, which may be older than
        some of the keys, says nothing."""
        if (path := self.find(part, name := CONFIGS.get(part, "config.json"))) is None:
            raise self.lacking(f"{part}/{name}")
        try:
            said = json.loads(path.read_text())
            if not isinstance(said, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError) as error:
            raise UserError(f"model {self.model!r}: {path} cannot be read ({first_line(error)}); fetch it again") from error
        return defaults(cls) | said if cls else said

    def weights(self, part: str) -> tuple[list[Path], str]:
        """Returns the files of a part's weights, and a note for the user if one is due. The variant comes before the plain
        files, safetensors before pickles."""
        if files := self._files(part, self.variant):
            return files, ""
        if not self.variant or not (files := self._files(part, None)):
            raise self.lacking(f"{part}/{FILES[part not in ('unet', 'vae')][0]}.safetensors")
        instead = ", ".join(file.name for file in files)
        return files, f"model {self.model!r}: {part} has no files of variant {self.variant}; taken instead: {instead}"

    def _files(self, part: str, variant: str | None) -> list[Path]:
        """The files of a part's weights of exactly this variant; none if it has none."""
        of = f".{variant}" if variant else ""
        for stem, ending in FILES:
            if whole := self.find(part, f"{stem}{of}.{ending}"):
                return [whole]
            if index := self.find(part, f"{stem}.{ending}.index{of}.json"):
                files = {name: self.find(part, name) for name in _shards(index)}
                if missing := [name for name, file in files.items() if file is None]:
                    raise self.lacking(f"{part}/{missing[0]}")
                return list(files.values())
        return []

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Returns the weights of a part by name, on the CPU, memory-mapped."""
        return {name: value for file in self.weights(part)[0] for name, value in tensors(file).items()}

    def tokenizer(self, cls: type) -> Any:
        """The tokenizer, by its class in the transformers library."""
        names = [*cls.vocab_files_names.values(), "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
        found = [path for name in dict.fromkeys(names) if (path := self.find("tokenizer", name))]
        if not any(path.name not in ("tokenizer_config.json", "special_tokens_map.json") for path in found):
            raise self.lacking(f"tokenizer/{names[0]}")
        try:
            return cls.from_pretrained(str(found[0].parent), local_files_only=True)
        except Exception as error:  # the tokenizers' library raises nothing finer
            raise UserError(f"model {self.model!r}: {found[0].parent} does not load as {cls.__name__} ({first_line(error)}); "
                            "fetch it again") from error

    def lacking(self, what: str) -> UserError:
        """Returns the error for a missing file; where the model's index says so, that it is another kind of model."""
        place, pipeline = self._place, self._pipeline
        if pipeline.get("transformer") or pipeline.get("text_encoder_2"):
            built = "a transformer, not a UNet" if pipeline.get("transformer") else "a UNet with two text encoders"
            return UserError(f"model {self.model!r}: is a {pipeline['_class_name']} ({built}), which is not supported; {KINDS}")
        named = f", a {pipeline['_class_name']}," if isinstance(pipeline.get("_class_name"), str) else ""
        apart = place.apart if isinstance(place, Hub) else ""
        return UserError(f"model {self.model!r}{named} has no {what.lstrip('/')}{apart}; " + (
            f"fetch it (`hf download {self.model}`)" if apart else "give a whole model in the layout of diffusers"))

    @cached_property
    def _place(self) -> Path | Hub:
        if self.model == "builtin":
            return WEIGHTS / self.builtin
        path = Path(self.model).expanduser()
        if path.is_dir():
            return path
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.model) and not path.exists():
            return Hub(self.model, self.revision)
        what = "is a file, which this prior does not read" if path.is_file() else f"there is no folder {path}"
        raise UserError(f"model {self.model!r}: {what}; give a folder in the diffusers layout, a hub id (owner/name) or "
                        "'builtin'")

    @cached_property
    def _pipeline(self) -> Mapping[str, Any]:
        """What the model's index says of the whole; empty if there is none to read."""
        try:
            said = json.loads(path.read_text()) if (path := self.find("", "model_index.json")) else {}
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}


def defaults(cls: type) -> dict[str, Any]:
    """What a class of diffusers takes where its configuration says nothing."""
    return {p.name: p.default for p in inspect.signature(cls.__init__).parameters.values() if p.default is not p.empty}


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file of safetensors or a checkpoint of torch, of which nothing else is read: on the CPU,
    mapped from the file. What a file is, its first bytes tell."""
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if head.startswith(b"version https:"):
            raise ValueError("it is a pointer of Git LFS; run `git lfs pull` where it was cloned")
        found = pickles.tensors(path) if head[:2] == b"PK" or head[:1] == b"\x80" else load_file(path)
    except Exception as error:  # pickle, zip, safetensors and torch raise their own
        raise UserError(f"{path}: is damaged, or no file of weights ({first_line(error)}); fetch it again") from error
    if not found:
        raise UserError(f"{path}: holds no tensors by name; give a checkpoint of the model")
    return found


def _shards(index: Path) -> list[str]:
    """The names of the files that an index lists."""
    try:
        return sorted({Path(name).name for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: cannot be read ({first_line(error)}); fetch it again") from error
