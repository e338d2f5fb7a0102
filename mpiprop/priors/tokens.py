"""Encoding texts by a tokenizer and an encoder of the transformers library.

Letters: V texts, N tokens of width E.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mpiprop.core.errors import UserError


def encode(tokenizer: Any, encoder: nn.Module, strings: Sequence[str], length: int, masked: bool = False
           ) -> Float[Tensor, "V {length} E"]:
    """Returns the encoder's last hidden states, float32 on the CPU. A text that is too long loses its last
    words and keeps its end token; `lost` reports them."""
    tokens = tokenizer(list(strings), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens["attention_mask"].to(encoder.device) if masked else None
    with torch.no_grad():
        return encoder(tokens["input_ids"].to(encoder.device), attention_mask=mask)[0].float().cpu()


def ends(tokenizer: Any, strings: Sequence[str], length: int) -> list[int]:
    """Returns the place of the first end token in each text, among its first `length` tokens."""
    rows = tokenizer(list(strings), padding="max_length", max_length=length, truncation=True)["input_ids"]
    return [row.index(tokenizer.eos_token_id) for row in rows]


def lost(tokenizer: Any, length: int, strings: Sequence[str], words_too: bool = True) -> list[str]:
    """Returns notes on the words that are cut off, and with `words_too` on those that the tokenizer does not know; a line for
    each kind.

    Raises UserError where it knows no word at all, as when its vocabulary is missing.
    """
    notes, strings = [], list(strings)
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", " ".join(strings)))
    pieces = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
    if pieces and all(tokenizer.unk_token_id in ids for ids in pieces.values()):
        raise UserError(f"prompt {strings[0]!r}: the model's tokenizer knows no word of it; is its vocabulary there?")
    spelt = [f'"{word}"' for word, ids in pieces.items() if tokenizer.unk_token_id in ids or len(ids) >= len(word) > 2]
    if words_too and spelt:
        notes.append(f"the model does not know {', '.join(spelt)}; expect a poor result")
    longest = max(tokenizer(strings, truncation=False, verbose=False)["input_ids"], key=len) if strings else []
    if len(longest) > length:
        notes.append(f"the prompt is too long: with the view that is added it has {len(longest)} tokens, and the model reads "
                     f'{length}; not read: "{tokenizer.decode(longest[length - 1:-1]).strip()}"')
    return notes
