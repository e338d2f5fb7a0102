"""The page is read back as a browser would: its text, its pictures, its curves."""

import json
import re
import shutil
from base64 import b64decode
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mpiprop import report
from mpiprop.config.components import OWN, find
from mpiprop.core.errors import UserError
from mpiprop.io import files, pictures
from mpiprop.io.mesh import Mesh
from mpiprop.guidance.regularizers import PENALTIES
from mpiprop.guidance.reference import LOSSES
from mpiprop.report import charts, splats
from mpiprop.report.judged import Judged, judge
from mpiprop.report.made import Made
from mpiprop.report.page import VIEWS
from mpiprop.report.terms import TERMS
from mpiprop.shapes.clouds import ply
from tools import corpus

PROMPT = 'a <script>alert("x")</script> & a "mug" {{body}}'


class Page(HTMLParser):
    """Headings, sources of images and meshes, scripts by id and charts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.images, self.scripts, self.charts, self.links = [], [], {}, [], []
        self.meshes: list[bytes] = []
        self.now = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.now = (tag, given.get("id"))
        self.links += [given[key] for key in ("src", "href") if key in given]
        self.images += [given["src"]] if tag == "img" else []
        self.charts += [json.loads(given["data-chart"])] if "data-chart" in given else []
        self.meshes += [b64decode(given["src"].split(",")[1])] if tag == "model-viewer" else []

    def handle_data(self, data: str) -> None:
        if self.now and self.now[0] in ("h1", "h3"):
            self.headings.append(data)
        if self.now and self.now[0] == "script":
            self.scripts[self.now[1]] = data
        self.now = None


def line(stage: str, tau: int, k: int, **more: object) -> str:
    record = {"stage": stage, "tau": tau, "k": k, "stride": 2, "e": 1e-4, "errors": [1e-5, 1e-3, 2e-3],
              "evaluations": 3, "seconds": 0.5, "evaluate_s": 0.3, "rollout_s": 0.1, "transport_s": 0.1,
              "checkpoint_s": 0.0, "ranks": 4, "sds": 1.0 / tau}
    return json.dumps(record | more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two stages of 4 and 6 steps that was killed at step 2 + 4 while it wrote a line."""
    run = tmp_path / "runs" / "demo-mug-0"
    (run / "views").mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps({
        "prompt": PROMPT, "name": "demo/small", "seed": 5, "window": {"size": 3},
        "stages": [{"steps": 4}, {"steps": 6, "window": {"size": 2}}]}))
    lines = [line("coarse", 2, 1), line("coarse", 4, 2), line("fine", 2, 1), '{"stage": "fi']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    files.write(Mesh(np.eye(4, 3, dtype=np.float32), np.array([[0, 1, 2], [0, 2, 3]], np.int32)), run / "mesh.glb")
    pictures.film(torch.zeros(2, 8, 8, 3), run / "turntable.gif")
    for i in range(30):
        pictures.png(torch.full((4, 4, 3), i / 30), run / "views" / f"{i:03d}.png")
    return run


def test_page_of_a_run(folder: Path, tmp_path: Path) -> None:
    report.write([report.RunSummary.read(folder)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.headings[0] == PROMPT and "<script>alert" not in text
    assert page.links and all(link.startswith("data:") for link in page.links)
    assert page.meshes == [(folder / "mesh.glb").read_bytes()]
    turntable, *views = (b64decode(image.split(",")[1]) for image in page.images)
    assert turntable == (folder / "turntable.gif").read_bytes()
    assert len(views) == VIEWS and views[0] == (folder / "views" / "000.png").read_bytes()
    assert {"Steps accepted per iteration", "Error of the iterates", "Where the time went",
            "Guidance (SDS)"} <= set(page.headings)
    assert [list(line["name"] for line in chart["series"]) for chart in page.charts] == [
        ["stride"], ["median of the window", "threshold e"], ["sds"]]
    assert page.charts[2]["series"][0]["points"] == [[2, 4, 6], [0.5, 0.25, 0.5]]
    assert [chart["log"] for chart in page.charts] == [False, True, False]
    assert page.charts[0]["marks"] == {"coarse": 0, "fine": 4}
    facts = dict(re.findall(r"<div><b>([^<]*)</b><span class=\"soft\">([^<]*)</span>", text))
    assert {("demo/small", "configuration"), ("5", "seed"), ("3, 2", "window"), ("4", "ranks"), ("6 of 10", "steps (T)"),
            ("2.00", "speed-up in iterations (T/K)")} <= set(facts.items())


def test_numbers_of_a_run(folder: Path) -> None:
    run = report.RunSummary.read(folder)
    assert (run.prompt, run.steps, run.iterations, run.horizon) == (PROMPT, 6, 3, 10)
    assert (run.evaluations, run.seconds) == (9, 1.5)
    assert run.series("sds") == [(2, 0.5), (4, 0.25), (6, 0.5)]  # the second stage goes on where the first ended


def test_a_comparison_begins_with_the_objects_and_what_differs(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "demo-mug-7"
    shutil.copytree(folder, other)
    keys = json.loads((folder / "config.yaml").read_text())
    keys |= {"prompt": "another", "seed": 7, "stages": [{"steps": 4}, {"steps": 6, "window": {"size": 9}}]}
    (other / "config.yaml").write_text(json.dumps(keys))
    Made(9812, 0, judged=Judged("another", 12, 11, "another", 0.82)).write(other)
    report.write([report.RunSummary.read(folder), report.RunSummary.read(other)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page, (differs, numbers, *_) = Page(text), re.findall(r"<table.*?</table>", text, re.S)
    assert page.headings[0] == "2 runs compared" and {PROMPT, "another"} <= set(page.headings)
    assert text.index("<article>") < text.index(differs) < text.index(numbers) < text.index("data-chart")
    assert [image[:14] for image in page.images[:3]] == ["data:image/gif", "data:image/gif", "data:image/png"]
    card = text.split("<article>")[2].split("</article>")[0]
    assert dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", card)) == {
        "configuration": "demo/small", "seed": "7", "window": "3, 9", "ranks": "4", "T/K": "2.00",
        "time": "1.5 s", "named right": "11 of 12 views (similarity 0.82)"}
    assert [unescape(cell) for cell in re.findall(r"<td>([^<]*)</td>", differs)] == [
        "prompt", PROMPT, "another", "seed", "5", "7", "stages.1.window.size", "2", "9"]
    rows = re.findall(r"<td>([^<]*)</td>", numbers)
    assert rows == [cell for name in ("demo-mug-0", "demo-mug-7")
                    for cell in (name, "6 of 10", "3", "2.00", "9", "1.5 s", "250 ms")]
    assert page.meshes == 2 * [(folder / "mesh.glb").read_bytes()]


def test_what_was_made_is_said_in_plain_words_and_read_back(tmp_path: Path) -> None:
    made = Made(9812, 1, 1034, 26.84, Judged("a red mug", 12, 3, "a pink mug", 0.4))
    made.write(tmp_path)
    assert Made.read(tmp_path) == made and Made.read(tmp_path / "nowhere") == Made() and not list(Made().lines())
    assert list(made.lines()) == [
        "mesh.glb: 9,812 faces, with 1 open edge (a hole)", "cloud.ply: 1,034 Gaussians",
        "likeness.png: PSNR against the input image: 26.8 dB",
        'the built-in judge names it "a red mug" in 3 of 12 views (similarity 0.40); to all of them together "a pink mug" is '
        "nearer"]
    assert next(Made(2, 0).lines()) == "mesh.glb: 2 faces, closed"
    (tmp_path / "results.json").write_text('{"faces": 2}')
    with pytest.raises(UserError, match="results.json"):
        Made.read(tmp_path)


def test_the_judge_is_asked_only_about_what_it_knows(tmp_path: Path) -> None:
    """Pictures of a mushroom as the corpus renders it: named so in all views, a chair in none. It does not know a
    corgi, nor objects without a look."""
    for i in range(3):
        corpus.photograph("mushroom", "green", tmp_path / f"{i}.png", 120 * i, 15, 1.8, 49.1)
    views = sorted(tmp_path.glob("*.png"))
    right, wrong = judge("A green mushroom", views), judge("an orange chair", views)
    assert (right.views, right.named, right.nearest) == (3, 3, "A green mushroom") and right.similarity > wrong.similarity
    assert wrong.named == 0 and wrong.nearest == "a green mushroom"
    assert judge("a mushroom", views) is judge("a corgi", views) is judge("", views) is judge("a green mushroom", []) is None


def test_too_many_gaussians_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with the largest product of opacity and the two longer axes stay, in their order, and the page says so."""
    rng = torch.Generator().manual_seed(0)
    rows = {"position": torch.randn(9, 3, generator=rng), "f_dc": torch.zeros(9, 1, 3), "f_rest": torch.zeros(9, 0, 3),
            "opacity": torch.randn(9, 1, generator=rng), "scale": torch.randn(9, 3, generator=rng),
            "rotation": torch.randn(9, 4, generator=rng)}
    ply.write(rows, tmp_path / "cloud.ply")
    monkeypatch.setattr(splats, "MOST", 4)
    weight = [float(rows["opacity"][i].sigmoid() * np.prod(sorted(rows["scale"][i].exp().tolist())[1:])) for i in range(9)]
    kept = sorted(sorted(range(9), key=lambda i: -weight[i])[:4])
    found = splats.packed(tmp_path / "cloud.ply")
    np.testing.assert_array_equal(found.words[:, :3].view("<f4"), rows["position"][kept][:, files.Y_UP].numpy())
    (tmp_path / "config.yaml").write_text("prompt: a mug\n")
    report.write([report.RunSummary.read(tmp_path)], tmp_path / "a.html")
    assert "4 of 9 Gaussians, those" in (tmp_path / "a.html").read_text()


def test_every_number_that_runs_log_is_explained() -> None:
    objectives = {name for use in OWN["guidance"] if (name := getattr(find(use).load(), "name", None))}
    assert {*PENALTIES, *LOSSES, *objectives, "lora", "refine", "grad_norm", "t", "psnr", "points", "mu_0", "mu_1",
            "phi"} == set(TERMS)


def test_whatever_is_missing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("prompt: a mug\n")
    report.write([report.RunSummary.read(tmp_path)], tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text())
    assert page.headings == ["a mug"] and page.images == page.charts == []
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "metrics.jsonl").write_text("[1]\n{}\n" + line("only", 3, 1, sds=float("nan")))
    run = report.RunSummary.read(tmp_path)
    assert (run.prompt, run.steps) == (tmp_path.name, 3)
    report.write([run], tmp_path / "b.html")
    assert "Guidance (SDS)" not in Page((tmp_path / "b.html").read_text()).headings


def test_no_run_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        report.RunSummary.read(tmp_path / "nowhere")


def test_curves_of_nothing_are_nothing() -> None:
    assert charts.curves("c", {"a": [(0, float("nan"))]}, "steps") == []
    assert charts.curves("c", {"a": [(0, 0.0), (1, -1.0)]}, "steps", log_y=True) == []
    (chart,) = charts.curves("c", {"a": [(0, 0.0)], "b": [(1, float("inf"))]}, "steps")
    assert [line["name"] for line in chart.data["series"]] == ["a"]


def test_long_curves_keep_their_mean() -> None:
    long = [(x, float(np.sin(x) + 2)) for x in range(1000)]
    short = charts.thinned(long, 50)
    assert len(short) == 50 and np.mean(short, 0) == pytest.approx(np.mean(long, 0))
    assert charts.thinned([(0, 1.0), (1, 100.0)] * 3, 3, geometric=True)[0][1] == pytest.approx(10)


def test_variances_are_read_by_noise_level(tmp_path: Path) -> None:
    """Fifths of the timesteps: the mean of two levels, or the one of them that is known."""
    record = {"stage": "coarse", "k": 1, "stride": 1, "e": 0.0, "errors": [0.0], "seconds": 1.0}
    levels = [1.0, 3.0, None, 4.0, *[None] * 6]
    lines = [record | {"tau": 1}, record | {"tau": 2, "variance": {"theta": [7.0], "novel": levels}}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = report.RunSummary.read(tmp_path)
    assert run.variance("theta") == {"theta": [(2, 7.0)]}
    assert run.variance("novel") == {"t 0 to 20 %": [(2, 2.0)], "t 20 to 40 %": [(2, 4.0)]}
    report.write([run], tmp_path / "a.html")
    assert "Variance of the gradient (novel)" in (tmp_path / "a.html").read_text()
