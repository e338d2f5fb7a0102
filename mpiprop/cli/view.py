"""`mpiprop view RUN`: the object, the cameras and the previews of a run in the browser, while it runs or after.

The page is viser's. What it shows is read from the run folder alone, so the run itself is not disturbed.
"""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from mpiprop.core.errors import RunError, UserError
from mpiprop.core.streams import Streams
from mpiprop.geometry.quaternions import matrices
from mpiprop.io.mesh import extract
from mpiprop.run import outputs
from mpiprop.run.checkpoint import Checkpoint
from mpiprop.run.stage import Stage
from mpiprop.shapes.clouds.base import Cloud, Splats
from mpiprop.views.cameras import Views

RESOLUTION = 64  # cells a side in which the surface of a field is found
POLL_S = 2.0  # between looks at the run folder
BAND_0 = 0.28209479177387814  # of the spherical harmonics: the square root of 1 / (4 pi)
BLUE, GREY = (66, 103, 178), (150, 150, 150)  # cameras of the newest step, of evaluation


class Viewer:
    """A page that shows the newest state of the run in `folder`."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        try:
            import viser
        except ImportError as error:
            raise UserError(f"view needs the package viser, which does not load here ({error}); pip install "
                            "'mpiprop[view]', or look at report.html") from None
        self.folder, self.shown = folder, 0.0
        outputs.newest(folder)  # whatever is wrong with the run is told before a page is opened
        with redirect_stdout(StringIO()):  # it announces itself in a box
            self.server = viser.ViserServer(host=host, port=port, label=f"mpiprop {folder.name}", verbose=False)
        self.server.scene.set_up_direction("+z")
        self.server.initial_camera.position, self.server.initial_camera.look_at = (2.0, 1.2, 1.0), (0.0, 0.0, 0.0)
        self.text = self.server.gui.add_markdown("")
        self.previews: Any = self.server.gui.add_slider("preview", 0, 1, 1, 0)
        self.picture = self.server.gui.add_image(np.zeros((1, 1, 3), np.uint8))
        self.previews.on_update(lambda _: self._show_preview())

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://localhost:{self.server.get_port()}"

    def refresh(self) -> bool:
        """Shows the newest checkpoint, if it is newer than what is shown; whether it was."""
        changed = (self.folder / "window.h5").stat().st_mtime
        if changed == self.shown:
            return False
        stage, found = outputs.newest(self.folder)
        self._show(stage, found)
        self.shown = changed
        return True

    def follow(self) -> None:
        """Shows every new checkpoint until the process ends."""
        while True:
            try:
                self.refresh()
            except (OSError, RunError, UserError) as error:  # a file between two states is there again at the next look
                self.text.content = f"cannot be shown at the moment: {error}"
            sleep(POLL_S)

    def _show(self, stage: Stage, found: Checkpoint) -> None:
        x = found.window.x
        scene = stage.scene.load(x.theta, x.tau)
        if isinstance(scene.shape, Cloud):
            with torch.no_grad():
                self._show_splats(scene.shape.splats())
        else:
            mesh = extract(scene, RESOLUTION, say=lambda _: None)
            colours = np.full_like(mesh.vertices, 0.7) if mesh.colours is None else mesh.colours
            self._show_mesh(mesh.vertices, mesh.faces, colours)
        rng = Streams(stage.run.seed, x.tau).of(stage.name)
        for term, views in zip(stage.config.terms, stage.views):
            self._show_cameras(term.name, views(x.tau, rng.of(term.name)), BLUE)
        self._show_cameras("evaluation", stage.views[0].turntable(outputs.VIEWS, (1, 1)), GREY)
        status = "done" if (self.folder / "done").exists() else "under way"
        self.text.content = (f"**{stage.run.subject}** ({status})\n\nstage {stage.name}, step {x.tau} of {stage.T}\n\n"
                             "blue: the cameras of this step; grey: of evaluation")
        self.previews.max = max(1, len(self._preview_files()) - 1)
        self.previews.value = self.previews.max
        self._show_preview()

    def _show_mesh(self, vertices: ndarray, faces: ndarray, colours: ndarray) -> None:
        from trimesh import Trimesh

        rgb = np.round(255 * np.clip(colours, 0, 1)).astype(np.uint8)
        self.server.scene.add_mesh_trimesh("object", Trimesh(vertices, faces, vertex_colors=rgb, process=False))

    def _show_splats(self, splats: Splats) -> None:
        turned = (matrices(splats.rotations) * splats.scales.T).movedim(-1, 0)
        self.server.scene.add_gaussian_splats(
            "object", splats.means.numpy(), (turned @ turned.mT).numpy(),
            (0.5 + BAND_0 * splats.harmonics[:, 0]).clamp(0, 1).numpy(), splats.opacities[:, None].numpy())

    def _show_cameras(self, name: str, views: Views, colour: tuple[int, int, int]) -> None:
        from viser.transforms import SO3

        for row, (c2w, fovy) in enumerate(zip(views.c2w.numpy(), views.fovy.tolist())):
            turn = SO3.from_matrix(c2w[:3, :3] * [1, -1, -1])  # viser's cameras look along +z, y down
            self.server.scene.add_camera_frustum(f"cameras/{name}/{row}", fovy, views.size[1] / views.size[0], scale=0.08,
                                                 color=colour, wxyz=turn.wxyz, position=c2w[:3, 3])

    def _preview_files(self) -> list[Path]:
        return sorted((self.folder / "previews").glob("*.png"), key=lambda path: path.stat().st_mtime)

    def _show_preview(self) -> None:
        from PIL import Image

        if files := self._preview_files():
            file = files[min(int(self.previews.value), len(files) - 1)]
            self.picture.image = np.asarray(Image.open(file).convert("RGB"))
            self.picture.label = file.stem
