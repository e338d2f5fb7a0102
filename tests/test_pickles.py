"""Checkpoints of torch are read without running what is in them."""

import collections
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from mpiprop.core.errors import UserError
from mpiprop.priors import pickles
from mpiprop.priors.diffusion import StableDiffusion
from mpiprop.priors.parts import tensors

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, -2], dtype=torch.int64),
         "half": torch.arange(4.0).half(), "turned": torch.arange(6.0).view(2, 3).T, "scalar": torch.tensor(3.5)}


class Callback:
    """What a training framework leaves: an object of a class that is not there when the file is read."""

    def __init__(self) -> None:
        self.best, self.score = "path", np.float64(0.5)


class Bomb:
    """Runs a command when it is unpickled by the ordinary reader."""

    def __init__(self, call, *args) -> None:
        self.call = call, args

    def __reduce__(self):
        return self.call


def save(content, path: Path, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def equal(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in wanted.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [dict, collections.OrderedDict, lambda state: {"state_dict": state},
                                  lambda state: {name: torch.nn.Parameter(value) if value.is_floating_point() else value
                                                 for name, value in state.items()}])
def test_tensors_are_those_that_torch_reads(tmp_path, zipped, wrap):
    assert equal(tensors(save(wrap(STATE), tmp_path / "x.ckpt", zipped)), STATE)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_training_framework_saved_beside_them_is_passed_over(tmp_path, monkeypatch, zipped):
    """Callbacks, settings and numbers of NumPy, of classes that do not exist any more."""
    lightning = {"epoch": 7, "callbacks": {Callback: Callback()}, "hyper_parameters": {"lr": np.float32(1e-4)},
                 "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}], "state_dict": STATE,
                 "loops": collections.defaultdict(list, {"fit": [Path("x"), {1, 2}, np.arange(3)]})}
    path = save(lightning, tmp_path / "last.ckpt", zipped)
    monkeypatch.delattr(sys.modules[__name__], "Callback")
    assert equal(tensors(path), STATE)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "inside", "key", "nested"])
def test_a_hostile_file_leaves_no_trace(tmp_path, monkeypatch, zipped, place):
    """Commands, code, imports and calls of what was built by a call: the ordinary reader runs them, this one does not."""
    monkeypatch.delitem(sys.modules, "marker_module", raising=False)
    (tmp_path / "marker_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    trace = tmp_path / "trace"
    touch = f"open({str(trace)!r}, 'w').close()"
    bombs = [Bomb(os.system, f"touch {trace}"), Bomb(exec, touch), Bomb(eval, touch), Bomb(__import__, "marker_module"),
             Bomb(getattr, Bomb(__import__, "os"), "getcwd")]
    content = {"beside": {"state_dict": STATE, "callbacks": bombs},
               "inside": {"state_dict": {**STATE, "x": bombs}}, "key": {"state_dict": STATE, "more": {"a": {"b": bombs}}},
               "nested": {"state_dict": STATE, "y": [[bombs]]}}[place]
    path = save(content, tmp_path / "hostile.ckpt", zipped)
    assert equal(tensors(path), STATE)
    assert not trace.exists() and not (tmp_path / "imported").exists() and "marker_module" not in sys.modules
    torch.load(path, weights_only=False)
    assert trace.exists() and (tmp_path / "imported").exists()  # the file is as hostile as it says


@pytest.mark.parametrize("code", [
    b"cos\nsystem\n(S'true'\ntR.", b"(dp0\nS'x'\ncbuiltins\nexec\n(S'1/0'\ntRs.",  # calls in the oldest protocol
    b"ccollections\nOrderedDict\n)R(S'__class__'\ncos\nsystem\ndb.",  # state of a stand-in
    b"\x80\x02cmpiprop.priors.pickles\n_Kind\n)\x81.", b"\x80\x02]q\x00h\x01.", b"\x80\x02", b"garbage"])
def test_pickles_that_are_no_checkpoint_are_refused_in_one_line(tmp_path, code):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    (tmp_path / "y.ckpt").write_bytes(code)
    for name in ("x.ckpt", "y.ckpt"):
        with pytest.raises(UserError) as caught:
            tensors(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_outside_their_numbers_are_refused(tmp_path):
    """Sizes and strides that reach past the storage, which as_strided would read from other memory."""
    path = save({"a": torch.zeros(4)}, tmp_path / "x.ckpt", True)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    (name,) = (entry for entry in entries if entry.endswith("data.pkl"))
    assert entries[name].count(b"K\x04\x85") == 1  # its size, (4,)
    entries[name] = entries[name].replace(b"K\x04\x85", b"K\x64\x85")
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    with pytest.raises(UserError, match="fewer numbers"):
        tensors(path)


def test_numbers_are_mapped_and_not_read(tmp_path):
    path = save(STATE, tmp_path / "x.ckpt", True)
    before = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    found = pickles.tensors(path)["a.weight"]
    assert found.untyped_storage().nbytes() == before.untyped_storage().nbytes()


def test_folders_with_pickled_weights_alone_just_work(tmp_path):
    """Old repositories have nothing else."""
    folder = tiny_models.make("sd", tmp_path / "sd")
    wanted = {name: value.clone() for name, value in StableDiffusion("cpu", model=str(folder)).unet.state_dict().items()}
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = folder / part / f"{stem}.safetensors"
        name = "pytorch_model.bin" if part == "text_encoder" else f"{stem}.bin"
        torch.save(tensors(path), folder / part / name)
        path.unlink()
    prior = StableDiffusion("cpu", model=str(folder))
    assert prior.verify() == []
    assert equal(dict(prior.unet.state_dict()), wanted)
