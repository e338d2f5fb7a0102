"""What a run has ended with."""

from pathlib import Path

import h5py


def flat(folder: Path, stage: str | None = None) -> bytes:
    """/x/flat of a finished run, and a check that it is finished; where a stage is named, in that one and with a mesh."""
    with h5py.File(folder / "window.h5") as file:
        assert file.attrs["complete"] and (folder / "done").exists()
        assert stage is None or file.attrs["stage"] == stage.encode() and (folder / "mesh.glb").exists()
        return file["x/flat"][()].tobytes()
