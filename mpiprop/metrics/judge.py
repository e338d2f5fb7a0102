"""The CLIP model that looks at pictures and texts."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError
from mpiprop.priors.parts import first_line

BUILTIN = Path(__file__).resolve().parents[1] / "weights" / "judge"
FILES = ("*.json", "*.txt", "model.safetensors")  # of a hub model
CHUNK = 64  # pictures at a time


class Judge:
    """A CLIP model with its own preparation of pictures and texts: a hub id, a folder, or "builtin"."""

    def __init__(self, model: str | Path = "builtin", device: torch.device | str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.name, self.device = str(model), torch.device(device)
        folder = self._folder()
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        except Exception as error:  # the tokenizers' library raises nothing finer
            raise UserError(f"--clip {self.name}: {folder} does not hold a CLIP model that can be read (config.json of a "
                            "CLIPModel, model.safetensors, its tokenizer's files, preprocessor_config.json): "
                            f"{first_line(error)}") from None
        self.model = self.model.to(self.device).eval().requires_grad_(False)

    def _folder(self) -> Path:
        """Where the model's files are; a hub model's come from the cache, and from the hub where that lacks them."""
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        path = BUILTIN if self.builtin else Path(self.name).expanduser()
        if path.is_dir():
            return path
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.name):
            raise UserError(f"--clip {self.name}: there is no such folder; give a folder, a hub id (owner/name) or builtin")
        try:
            return Path(snapshot_download(self.name, allow_patterns=FILES, local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        try:
            HfApi().model_info(self.name, timeout=10)  # fails at once where a download would try for a minute
            return Path(snapshot_download(self.name, allow_patterns=FILES))
        except Exception as error:  # of several libraries
            raise UserError(f"--clip {self.name}: there is no such folder, and the hub did not give it ({first_line(error)}); "
                            "without a network give a folder that holds the model, or --clip builtin") from None

    @property
    def builtin(self) -> bool:
        """Whether it is the small one that comes with the program and knows few words."""
        return self.name == "builtin"

    def prepare(self, pictures: Sequence[ndarray], resample: int | None = None) -> Tensor:
        """The model's input [B, 3, h, w] from B pictures [H, W, 3] of bytes, which may differ in size.

        resample: the filter of Pillow that pictures are resized with, if it is not to be the model's own
        """
        options = {} if resample is None else {"resample": resample}
        return self.processor(list(pictures), input_data_format="channels_last", return_tensors="pt", **options).pixel_values

    @torch.no_grad()
    def features(self, pictures: Sequence[ndarray], resample: int | None = None) -> Tensor:
        """Image features [B, E] of B pictures as `prepare` takes them, of the length that the model gives them, on the CPU."""
        chunks = (pictures[i:i + CHUNK] for i in range(0, len(pictures), CHUNK))
        return torch.cat([_pooled(self.model.get_image_features(self.prepare(chunk, resample).to(self.device)))
                          for chunk in chunks])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit text features [N, E] on the CPU; a text that is too long is cut at the model's length."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        chunks = zip(tokens.input_ids.split(256), tokens.attention_mask.split(256))
        return normalize(torch.cat([_pooled(self.model.get_text_features(ids.to(self.device), mask.to(self.device)))
                                    for ids, mask in chunks]), dim=-1)

    def fingerprint(self) -> str:
        """What names the model beyond its path: a hash of its vision weights and of its preparation of pictures."""
        digest = hashlib.blake2b(json.dumps(self.processor.to_dict(), sort_keys=True, default=str).encode(), digest_size=16)
        for part in (self.model.vision_model, self.model.visual_projection):
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()


def _pooled(output: object) -> Tensor:
    """Features on the CPU, from a tensor (transformers 4) or from a model output (transformers 5)."""
    return getattr(output, "pooler_output", output).float().cpu()
