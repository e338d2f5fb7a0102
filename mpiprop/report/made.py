"""What a run made, in terms of the result: said at its end, kept in results.json, shown by the page."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mpiprop.core.errors import UserError
from mpiprop.io.files import atomic
from mpiprop.report.judged import Judged

FILE = "results.json"


@dataclass(frozen=True)
class Made:
    """The result of a run: counts and figures; None for what a run folder does not have."""

    faces: int | None = None  # of mesh.glb
    open_edges: int | None = None  # of mesh.glb, those that do not join two faces
    gaussians: int | None = None  # in cloud.ply
    psnr_db: float | None = None  # of the view from the input image's camera
    judged: Judged | None = None

    @classmethod
    def read(cls, folder: Path) -> "Made":
        """What the run in `folder` wrote down at its end; nothing if it has not ended. Raises UserError if the file is not what
        `write` wrote."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            found = json.loads(path.read_text())
            return cls(**found | {"judged": found["judged"] and Judged(**found["judged"])})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: is not what a run of this version wrote; move it away and run report again") from None

    def write(self, folder: Path) -> None:
        """Writes it down for `read`."""
        with atomic(folder / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def lines(self) -> Iterator[str]:
        """A sentence for each."""
        if self.faces is not None:
            holes = "a hole" if self.open_edges == 1 else "holes"
            closed = f"with {counted(self.open_edges, 'open edge')} ({holes})" if self.open_edges else "closed"
            yield f"mesh.glb: {counted(self.faces, 'face')}, {closed}"
        if self.gaussians is not None:
            yield f"cloud.ply: {counted(self.gaussians, 'Gaussian')}"
        if self.psnr_db is not None:
            yield f"likeness.png: PSNR against the input image: {self.psnr_db:.1f} dB"
        if self.judged:
            yield str(self.judged)


def counted(n: int, noun: str) -> str:
    """A number with its noun: 1 face, 9,812 faces."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
