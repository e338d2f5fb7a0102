"""Checkpoints of torch, read without running them: what torch wrote, what Lightning adds, and what a hostile file tries."""

import argparse
import builtins
import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

from mpiprop.core.errors import UserError
from mpiprop.priors.parts import tensors

FORMATS = pytest.mark.parametrize("zipped", [True, False])


def weights() -> dict[str, torch.Tensor]:
    """Every layout of a tensor that a state dictionary may hold."""
    base = torch.arange(24.0)
    state = collections.OrderedDict(
        plain=base.view(4, 6).clone(), half=base[:5].half(), brain=base[:3].bfloat16(), whole=torch.arange(6).view(2, 3),
        turned=base.view(4, 6).t(), part=base[3:9:2], scalar=torch.tensor(3.0), empty=torch.zeros(0, 3),
        flag=torch.tensor([True, False]), parameter=torch.nn.Parameter(base[:2].clone()))
    state._metadata = {"": {"version": 1}}  # as of a module's
    return state


def same(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(state) and all(torch.equal(a, b) and a.dtype == b.dtype
                                              for a, b in zip(found.values(), state.values()))


@FORMATS
def test_tensors_are_those_that_torch_saved(zipped, tmp_path):
    for content in (weights(), {"state_dict": weights(), "global_step": 7}):
        torch.save(content, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
        assert same(tensors(tmp_path / "w.bin"), weights())


class ModelCheckpoint:
    """Stands for a class of Lightning, which is not installed here."""

    def __init__(self) -> None:
        self.best = torch.tensor(0.5)


@FORMATS
def test_what_lightning_saves_beside_the_tensors_is_passed_over(zipped, tmp_path):
    """Classes as keys, objects with state, settings, numbers and types of NumPy, sets, paths, functions."""
    class Settings(dict):
        pass

    Settings.__qualname__, Settings.__module__ = "Settings", __name__
    globals()["Settings"] = Settings
    content = {"epoch": 3, "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "path": Path("x")},
                                         "Timer": ModelCheckpoint()},
               "hyper_parameters": Settings(lr=1e-4, unet=argparse.Namespace(layers=[2, 3])),
               "loops": {"score": numpy.float64(3.5), "dtype": numpy.dtype("f4"), "array": numpy.arange(3)},
               "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "betas": {0.9, 0.99}, "f": os.path.join}],
               "state_dict": weights()}
    torch.save(content, tmp_path / "l.ckpt", _use_new_zipfile_serialization=zipped)
    del globals()["Settings"]
    assert same(tensors(tmp_path / "l.ckpt"), weights())


class Call:
    """An object whose pickle calls a function, sets its state, fills it."""

    def __init__(self, function: object, *args: object, state: object = None, items: list | None = None) -> None:
        self.parts = function, args, state, iter(items) if items else None

    def __reduce__(self) -> tuple:
        return self.parts

    def __call__(self) -> None:
        """So that pickle's writer takes what it makes for a function."""


def attacks(trace: Path) -> dict[str, object]:
    """Objects whose unpickling, by pickle itself, would leave `trace` behind or change the program."""
    touch = f"open({str(trace)!r}, 'w')"
    name = collections.OrderedDict(x=1)
    return {"system": Call(os.system, f"touch {trace}"), "exec": Call(exec, touch), "eval": Call(eval, touch),
            "run": Call(subprocess.run, ["touch", str(trace)]), "open": Call(open, str(trace), "w"),
            "nested": Call(getattr, Call(__import__, "os"), "system"),
            "called": Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {trace}"),
            "state": Call(ModelCheckpoint, state={"__class__": Call(exec, touch)}),
            "slots": Call(ModelCheckpoint, state=(None, {"append": Call(exec, touch)})),
            "appended": Call(list, items=[Call(exec, touch)]),
            "filled": Call(ModelCheckpoint, items=[1, Call(exec, touch)]),
            "attribute": Call(setattr, Call(__import__, "builtins"), "open", None), "imported": Call(__import__, "this"),
            "rebuilt": Call(torch._utils._rebuild_parameter, Call(exec, touch), True, name),
            "tensor": Call(torch._utils._rebuild_tensor_v2, Call(exec, touch), 0, (2,), (1,), False, name)}


@FORMATS
@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_a_hostile_file_leaves_no_trace(attack, zipped, tmp_path):
    """No file, no module, no changed function; the tensors beside it are read, or one line says why not."""
    trace = tmp_path / "trace"
    torch.save({"state_dict": weights(), "evil": attacks(trace)[attack]}, tmp_path / "evil.ckpt",
               _use_new_zipfile_serialization=zipped)
    trace.unlink(missing_ok=True)
    before = builtins.open, set(sys.modules), vars(torch.Tensor).copy(), dict(vars(collections.OrderedDict))
    try:
        assert same(tensors(tmp_path / "evil.ckpt"), weights())
    except UserError as error:
        assert "\n" not in str(error)
    assert not trace.exists()
    assert before == (builtins.open, set(sys.modules), vars(torch.Tensor).copy(), dict(vars(collections.OrderedDict)))
    if attack in ("system", "exec", "eval", "run", "open", "appended", "rebuilt"):  # the file is as hostile as it says
        torch.load(tmp_path / "evil.ckpt", weights_only=False)
        assert trace.exists()


def archive(path: Path, program: bytes, extra: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in {"data.pkl": program, **(extra or {})}.items():
            file.writestr(f"archive/{name}", content)
    return path


TOUCH = b"cos\nsystem\n(S'touch trace'\ntR."
OPCODES = {  # programs written by hand, that pickle's own writer does not make
    "reduce": TOUCH, "inst": b"(S'touch trace'\nios\nsystem\n.", "obj": b"(cos\nsystem\nS'touch trace'\no.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system(S'touch trace'\ntR.",
    "newobj": b"\x80\x02cos\nsystem\n(S'touch trace'\nt\x81.", "newobj ex": b"\x80\x04cos\nsystem\n(S'touch trace'\nt}\x92.",
    "memo": b"cos\nsystem\np0\n0g0\n(S'touch trace'\ntR.", "memo of another": b"(lp0\n0g7\n.",
    "extension": b"\x82\x01.", "build a class": b"ccollections\nOrderedDict\n}S'__setstate__'\ncos\nsystem\nsb.",
    "build a tensor class": b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'of'\ncos\nsystem\nstb.",
    "build a storage class": b"ctorch\nFloatStorage\n(N}S'dtype'\ncos\nsystem\nstb.",
    "persistent": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI4\ntQ.", "persistent text": b"Pos.system\n.",
    "append to a class": b"cos\nsystem\nI1\na.", "numbers": b"\x80\x02]K\x01a.", "endless": b"\x80\x02" + b"(" * 5000,
    "nothing": b""}


@pytest.mark.parametrize("opcode", OPCODES)
def test_programs_by_hand_leave_no_trace(opcode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        tensors(archive(tmp_path / "x.ckpt", OPCODES[opcode]))
    assert "\n" not in str(caught.value) and not Path("trace").exists()
    old = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    for content in (OPCODES[opcode], old + OPCODES[opcode] + pickle.dumps([], 2)):
        (tmp_path / "y.pt").write_bytes(b"\x80\x02" + content if content[:1] != b"\x80" else content)
        with pytest.raises(UserError):
            tensors(tmp_path / "y.pt")
    assert not Path("trace").exists()


def described(offset: object, size: object, stride: object, numel: object = 4, key: object = "0") -> bytes:
    """The pickle of {"a": tensor} with this description of a storage of four float32 numbers."""
    class Kept:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, key, "cpu", numel) if isinstance(value, Kept) else None
    out = io.BytesIO()
    Writer(out, 2).dump({"a": Call(torch._utils._rebuild_tensor_v2, Kept(), offset, size, stride, False, None)})
    return out.getvalue()


def test_a_tensor_never_reaches_beyond_its_numbers(tmp_path):
    data = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}
    good = tensors(archive(tmp_path / "g.pt", described(1, (3,), (1,)), data))
    assert good["a"].tolist() == [2, 3, 4]
    for wrong in ((2, (3,), (1,)), (0, (2, 3), (3, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)), (0, (10 ** 18,), (1,)),
                  (0, (2,), (1, 1)),
                  (0, "ab", "ab"), (0, (2.0,), (1,)), (0, (1,), (1,), 5), (0, (1,), (1,), -1), (0, (1,), (1,), 4, "../0")):
        with pytest.raises(UserError):
            tensors(archive(tmp_path / "w.pt", described(*wrong), data))
    with pytest.raises(UserError, match="compressed"):
        tensors(archive(tmp_path / "c.pt", described(0, (4,), (1,)), data, zipfile.ZIP_DEFLATED))


@FORMATS
def test_a_file_that_was_cut_short_is_one_line(zipped, tmp_path):
    torch.save(weights(), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "w.pt").read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 40):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(UserError) as caught:
            tensors(tmp_path / "cut.pt")
        assert "\n" not in str(caught.value) and "cut.pt" in str(caught.value)


def test_a_large_file_is_mapped_and_not_read(tmp_path):
    """4 GB in a hole, opened without taking them."""
    with torch.serialization.skip_data():
        torch.save({"a": torch.empty(10 ** 9)}, tmp_path / "large.ckpt")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    before = resident()
    found = tensors(tmp_path / "large.ckpt")["a"]
    assert found.shape == (10 ** 9,) and float(found[-1]) == 0
    assert resident() - before < 100e6
