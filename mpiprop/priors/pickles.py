"""Checkpoints of torch, read without executing anything in them.

A pickle is a program that names functions and calls them. This module rebuilds tensors alone. Every other name becomes an
inert stand-in, so that other objects of a training framework (callbacks, settings, NumPy scalars) are ignored. Nothing that a
file names is imported. Tensors are memory-mapped.

Formats: the zip of torch 1.6 and later, and the pickles one after the other of before.
"""

import os
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
ALIGNED = 16  # bytes, for every type of number; only the older format may lie otherwise, and is then read at once
STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
            "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}


class _Inert:
    """The stand-in for anything but a tensor: accepts every operation of a pickle and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = _nothing


class _Dict(dict):
    """A dictionary whose attributes a pickle cannot set."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Kind:
    """A class of storages."""

    dtype: torch.dtype

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("a class of storages has no state")


@dataclass(frozen=True, slots=True)
class _Storage:
    """The storage of some tensors, by its name in the file."""

    dtype: torch.dtype
    key: str
    numel: int

    __setstate__ = _Kind.__setstate__


class _Tensor:
    """A tensor as a pickle describes it, called in place of torch._utils._rebuild_tensor_v2."""

    __slots__ = ("described",)

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        self.described = storage, offset, size, stride

    def __setstate__(self, _: Any) -> None:
        pass

    def of(self, storages: dict[str, Tensor]) -> Tensor:
        """The tensor, a view of the numbers of its storage. Raises UnpicklingError where it lies outside them."""
        storage, offset, size, stride = self.described
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
            raise pickle.UnpicklingError("a tensor is described by what is no number")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        flat = storages[storage.key].view(storage.dtype)
        if 0 in size:
            return flat.new_empty(size)
        if last >= len(flat):
            raise pickle.UnpicklingError("a tensor has fewer numbers than its shape")
        return flat[offset:].as_strided(size, stride)


class _Parameter:
    """Called in place of torch._utils._rebuild_parameter."""

    def __new__(cls, data: Any, *_: Any) -> Any:
        return data

    __setstate__ = _Tensor.__setstate__


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict, ("builtins", "dict"): _Dict, ("__builtin__", "dict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _Tensor, ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter, ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    **{(module, name): _Kind(dtype) for name, dtype in STORAGES.items() for module in ("torch", "torch.storage")}}


class _Reader(pickle.Unpickler):
    """An unpickler that rebuilds tensors and plain data alone."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Kind(dtype), str(key), _, int(numel)) | ("storage", _Kind(dtype), str(key), _, int(numel), None):
                return self.storages.setdefault(key, _Storage(dtype, key, numel))
        raise pickle.UnpicklingError("holds storages in a form that is not read")


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a checkpoint, or in its `state_dict`: on the CPU, mapped from the file.

    Raises whatever pickle, zipfile and torch raise for a damaged file.
    """
    if zipfile.is_zipfile(path):
        found, spans = _zipped(path)
    else:
        found, spans = _in_sequence(path)
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    size = os.path.getsize(path)
    if any(start + length > size for start, length in spans.values()):
        raise EOFError("the file is cut short")
    whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0)
    storages = {key: whole[start:start + length] for key, (start, length) in spans.items()}
    storages = {key: part if len(part) and part.data_ptr() % ALIGNED == 0 else part.clone() for key, part in storages.items()}
    named = found.items() if isinstance(found, dict) else ()
    return {name: value.of(storages) for name, value in named if isinstance(name, str) and isinstance(value, _Tensor)}


def _zipped(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """What a zip's pickle says, and where each storage's bytes lie: first byte and length."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise pickle.UnpicklingError("is compressed, which torch's checkpoints are not")
        with archive.open(entries["data.pkl"]) as stream:
            reader = _Reader(stream)
            found = reader.load()
        spans = {}
        for key, storage in reader.storages.items():
            entry = entries[f"data/{key}"]
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            if storage.numel * storage.dtype.itemsize > entry.file_size:
                raise EOFError("a storage is cut short")
            spans[key] = entry.header_offset + 30 + name + extra, storage.numel * storage.dtype.itemsize
    return found, spans


def _in_sequence(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same of the older format: magic number, version, machine, content, the names of storages, their numbers."""
    with open(path, "rb") as file:
        if _Reader(file).load() != MAGIC:
            raise pickle.UnpicklingError("is no checkpoint of torch")
        _Reader(file).load(), _Reader(file).load()
        reader = _Reader(file)
        found, spans = reader.load(), {}
        for key in _Reader(file).load():
            (numel,), storage = struct.unpack("<q", file.read(8)), reader.storages[key]
            if numel != storage.numel:
                raise pickle.UnpicklingError("a storage has another size than its tensors say")
            spans[key] = file.tell(), numel * storage.dtype.itemsize
            file.seek(numel * storage.dtype.itemsize, os.SEEK_CUR)
    return found, spans
