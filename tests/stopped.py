"""Runs in this process that stop after some slides and go on, and several runs under one mpirun."""

from dataclasses import replace
from pathlib import Path

import h5py
import torch

from mpiprop.config import loader
from mpiprop.core.errors import Preempted
from mpiprop.io import photograph
from mpiprop.run import checkpoint
from mpiprop.run.driver import Drive
from mpiprop.run.log import Log
from mpiprop.run.stage import Stage
from mpiprop.transport.serial import Serial
from mpiprop.transport.sharded import Sharded

MPI = """import json, sys
from pathlib import Path
from mpiprop.run.program import main
for name, overrides, folder in json.loads(sys.argv[1]):
    if code := main(name, overrides, Path(folder), True):
        sys.exit(code)
"""
"""A program that goes on with runs [[name, overrides, folder], ...]."""


def follow(name: str, overrides: list[str], folder: Path, stop: bool) -> bool:
    """The run in this process from where it is to its end, or its next two slides alone; whether it is complete."""
    run, reference = loader.load(name, overrides), None
    if run.image:
        reference = photograph.read(run.image, run.reference)
        run = replace(run, reference=replace(run.reference, sha256=reference.sha256))
    folder.mkdir(exist_ok=True)
    before = slides(folder)
    found = checkpoint.load(folder / "window.h5") if (folder / "window.h5").exists() else None
    (folder / "config.yaml").write_text(text := loader.resolved(run))
    for index in range([stage.name for stage in run.stages].index(found.stage) if found else 0, len(run.stages)):
        stage = Stage(run, index, torch.device("cpu"), reference)
        unit, shards = stage.unit(stage.embeddings()), stage.config.window.shards
        transport = Serial(unit if shards == 1 else Sharded(unit, shards), lambda: stop and slides(folder) > before + 1)
        try:
            drive = Drive(run, text, stage, folder, Log(folder), index + 1 == len(run.stages))
            drive.begin()
            drive(transport)
        except Preempted:
            return ended(folder)[0]
    return True


def slides(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_text().count("\n") if (folder / "metrics.jsonl").exists() else 0


def ended(folder: Path) -> tuple[bool, str, bytes]:
    """Whether the run is complete, its stage, and /x/flat."""
    with h5py.File(folder / "window.h5") as file:
        return bool(file.attrs["complete"]), file.attrs["stage"].decode(), file["x/flat"][()].tobytes()
