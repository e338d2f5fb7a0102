"""`mpiprop view` in a real browser: the object is on the page, and follows the run."""

import asyncio
import base64
import io
import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from time import monotonic, sleep

import numpy as np
import pytest
import websockets
from numpy import ndarray
from PIL import Image

from mpiprop.cli.main import dispatch
from mpiprop.cli.view import Viewer
from mpiprop.core.errors import UserError

TOY = ["toy", "prompt=a red ball", "stages.0.steps=60", "turntable.frames=1", "preview.every_s=3600", "preview.size=16"]


@pytest.fixture
def screenshot(tmp_path: Path) -> Iterator[Callable[[str], ndarray]]:
    """A function that returns the page at an address as headless Chromium draws it, [H, W, 3] bytes."""
    if (browser := which("chromium") or which("chromium-browser") or which("google-chrome")) is None:
        pytest.skip("no chromium")
    process = subprocess.Popen(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--disable-background-networking", "--no-first-run", "--window-size=1200,800",
         f"--user-data-dir={tmp_path / 'browser'}", "--remote-debugging-port=0", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    port_file, end = tmp_path / "browser/DevToolsActivePort", monotonic() + 60
    while not port_file.exists() and monotonic() < end:
        sleep(0.1)
    port = port_file.read_text().splitlines()[0]
    (page,) = [tab for tab in json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json")) if tab["type"] == "page"]

    async def said(method: str, **keys: object) -> dict:
        async with websockets.connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            await socket.send(json.dumps({"id": 1, "method": method, "params": keys}))
            while (answer := json.loads(await socket.recv())).get("id") != 1:
                pass
            return answer.get("result", {})
    opened: list[str] = []

    def shot(address: str) -> ndarray:
        if opened != [address]:
            asyncio.run(said("Page.navigate", url=address))
            opened[:] = [address]
        while not (data := asyncio.run(said("Page.captureScreenshot")).get("data")):
            sleep(0.2)  # the page has not been drawn yet
        return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    yield shot
    process.kill()
    process.wait()


def seen(screenshot: Callable[[str], ndarray], address: str, channel: int) -> bool:
    """Whether within a minute the scene shows something whose colour is mostly in one channel, as large as an object."""
    end = monotonic() + 60
    while monotonic() < end:
        picture = screenshot(address)[:, 320:850].astype(int)  # between the notes and the panel with the preview
        others = np.delete(picture, channel, 2).max(2)
        if (picture[..., channel] > others + 60).sum() > 4000:
            return True
        sleep(0.5)
    return False


def test_the_object_is_shown_and_follows_the_run(tmp_path: Path, screenshot: Callable[[str], ndarray]) -> None:
    assert dispatch(["run", *TOY, "--out", str(tmp_path / "run")]) == 0
    viewer = Viewer(tmp_path / "run", "127.0.0.1", 8080)
    assert viewer.refresh() and not viewer.refresh()
    assert "step 60 of 60" in viewer.text.content and "done" in viewer.text.content
    assert viewer.picture.image.shape[1] == 4 * viewer.picture.image.shape[0]
    assert seen(screenshot, viewer.address, 0)
    assert dispatch(["run", *TOY, "prompt=a green ball", "--out", str(tmp_path / "green")]) == 0
    (tmp_path / "green/window.h5").rename(tmp_path / "run/window.h5")
    assert viewer.refresh() and seen(screenshot, viewer.address, 1)
    viewer.server.stop()


def test_gaussians_are_shown(tmp_path: Path, screenshot: Callable[[str], ndarray]) -> None:
    keys = ["stages.0.steps=40", "stages.0.shape={use: Gaussians, number: 300, opacity: 0.9}",
            "stages.0.render={use: Splat}",
            "stages.0.background={use: Solid}", "stages.0.optimiser.lr=0.05"]
    keys += ["turntable.frames=1", "preview.every_s=3600", "mesh.resolution=8"]
    assert dispatch(["run", "toy", "prompt=a red ball", *keys, "--out", str(tmp_path / "run")]) == 0
    viewer = Viewer(tmp_path / "run", "127.0.0.1", 8080)
    assert viewer.refresh() and seen(screenshot, viewer.address, 0)
    viewer.server.stop()


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        dispatch(["view", str(tmp_path)])
