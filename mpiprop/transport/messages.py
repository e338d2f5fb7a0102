"""What ranks send one another: a header of fixed size, then a vector. Buffers only, nothing pickled.

A task is a header (kind, tau, L, which part of the batch) and the flat theta; a reply is a header (kind, tau, seconds, scalars,
sums, sizes) and one vector with the gradient and the statistics of a drift.
"""

import json
from base64 import b85decode, b85encode
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpiprop.core.errors import RunError
from mpiprop.core.theta import Drift

TASK, STOP, DRIFT, FAILURE, ALERT = range(1, 6)  # kinds of message; also the tags of headers
PAYLOAD = 9  # tag of vectors
HEADER = 8192  # bytes

Header = np.ndarray[Any, np.dtype[np.uint8]]


def pack(**record: object) -> Header:
    """A header as a fixed-size block of JSON bytes. Raises RunError for a record that is too long."""
    text = json.dumps(record, ensure_ascii=False).encode()
    if len(text) > HEADER:
        raise RunError(f"a message of {len(text)} bytes: more losses and sums than a header of {HEADER} holds")
    return np.frombuffer(text.ljust(HEADER), dtype=np.uint8)


def unpack(header: Header) -> dict[str, Any]:
    """The record of a header."""
    record: dict[str, Any] = json.loads(header.tobytes())
    return record


def pack_drift(drift: Drift) -> tuple[dict[str, Any], Tensor]:
    """A drift as a record for the header, and one vector that shares the gradient's memory where nothing follows it."""
    sizes = {name: len(values) for name, values in drift.statistics.items()}
    vector = torch.cat([drift.grad, *drift.statistics.values()]) if sizes else drift.grad
    sums = {name: [list(values.shape), b85encode(values.numpy().tobytes()).decode()] for name, values in drift.sums.items()}
    return {"D": len(drift.grad), "statistics": sizes, "scalars": dict(drift.scalars), "sums": sums,
            "seconds": drift.seconds}, vector


def length(record: Mapping[str, Any]) -> int:
    """The length of the vector that follows the header of a drift."""
    return int(record["D"] + sum(record["statistics"].values()))


def unpack_drift(record: Mapping[str, Any], vector: Tensor) -> Drift:
    """The drift of a record and its vector, whose memory it shares."""
    grad, *statistics = torch.split(vector, [record["D"], *record["statistics"].values()])
    sums = {name: torch.from_numpy(np.frombuffer(b85decode(text), np.float32).copy()).view(shape)
            for name, (shape, text) in record["sums"].items()}
    return Drift(grad, record["scalars"], record["seconds"], dict(zip(record["statistics"], statistics)), sums)
