"""The CLIP model that looks at pictures and texts."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.errors import UserError
from mpiprop.priors.hub import first_line
from mpiprop.priors.networks import Network, quiet
from mpiprop.priors.parts import Parts

NEEDED = ("config.json", "preprocessor_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
CHUNK = 64  # pictures at a time


class Judge:
    """A CLIP model with its own preparation of pictures and texts: a hub id, a folder, or "builtin"."""

    def __init__(self, model: str | Path = "builtin", device: torch.device | str = "cpu") -> None:
        """Raises UserError where there is no such model, or one of another kind."""
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.name, self.device = str(model), torch.device(device)
        parts = Parts(self.name, builtin="judge")
        found = {name: parts.find("", name) for name in (*NEEDED, *TOKENIZER)}
        lacking, config = [name for name in NEEDED if found[name] is None], found["config.json"]
        if lacking or config is None:
            raise UserError(f"--clip {self.name}: has no {' and no '.join(lacking)}; give the folder or the hub id of a CLIP "
                            "model, or builtin")
        folder = config.parent
        try:
            with quiet():
                self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
                self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the tokenizers' library raises nothing finer
            raise UserError(f"--clip {self.name}: its preparation of pictures or texts cannot be read ({first_line(error)}); "
                            "give the folder or the hub id of a CLIP model, or builtin") from None
        network = Network(CLIPModel, lambda: parts.config(""), lambda: parts.tensors(""), f"--clip {self.name}")
        self.model: Any = network.load(torch.float32).to(self.device)

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


def _pooled(output: Any) -> Tensor:
    """Features on the CPU, from a tensor (transformers 4) or from a model output (transformers 5)."""
    return getattr(output, "pooler_output", output).float().cpu()
