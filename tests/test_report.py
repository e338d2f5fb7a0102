"""The page is read back as a browser would: its text, its pictures, its curves."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mpiprop import charts, report
from mpiprop.core.errors import UserError
from mpiprop.export import files, pictures
from mpiprop.export.mesh import Mesh

PROMPT = 'a <script>alert("x")</script> & a "mug" {{body}}'


class Page(HTMLParser):
    """Headings, image sources, scripts by id and curves of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.images, self.scripts, self.curves, self.links = [], [], {}, [], []
        self.now = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.now = (tag, given.get("id"))
        self.links += [given[key] for key in ("src", "href") if key in given]
        self.images += [given["src"]] if tag == "img" else []
        self.curves += [given["points"]] if tag == "polyline" else []

    def handle_data(self, data: str) -> None:
        if self.now and self.now[0] in ("h1", "h3"):
            self.headings.append(data)
        if self.now and self.now[0] == "script":
            self.scripts[self.now[1]] = data
        self.now = None


def line(stage: str, tau: int, k: int, **more: object) -> str:
    record = {"stage": stage, "tau": tau, "k": k, "stride": 2, "e": 1e-4, "errors": [1e-5, 1e-3, 2e-3],
              "evaluations": 3, "seconds": 0.5, "evaluate_s": 0.3, "rollout_s": 0.1, "transport_s": 0.1,
              "checkpoint_s": 0.0, "sds": 1.0 / tau}
    return json.dumps(record | more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two stages of 4 and 6 steps that was killed at step 2 + 4 while it wrote a line."""
    run = tmp_path / "runs" / "demo-mug-0"
    (run / "views").mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps({"prompt": PROMPT, "stages": [{"steps": 4}, {"steps": 6}]}))
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
    assert page.links and all(link.startswith("data:") for link in page.links) and not re.search("https?://", text)
    assert b64decode(page.scripts["glb-0"]) == (folder / "mesh.glb").read_bytes()
    turntable, *views = (b64decode(image.split(",")[1]) for image in page.images)
    assert turntable == (folder / "turntable.gif").read_bytes()
    assert len(views) == report.VIEWS and views[0] == (folder / "views" / "000.png").read_bytes()
    assert [title for title in page.headings if title in ("Stride", "Error", "Time per part", "sds")] == [
        "Stride", "Error", "Time per part", "sds"]
    assert len(page.curves) == 4  # stride, error, threshold, sds


def test_numbers_of_a_run(folder: Path) -> None:
    run = report.RunSummary.read(folder)
    assert (run.prompt, run.steps, run.iterations, run.horizon) == (PROMPT, 6, 3, 10)
    assert (run.evaluations, run.seconds) == (9, 1.5)
    assert run.series("sds") == [(2, 0.5), (4, 0.25), (6, 0.5)]  # the second stage goes on where the first ended


def test_comparison_of_runs(folder: Path, tmp_path: Path) -> None:
    run = report.RunSummary.read(folder)
    report.write([run, replace(run, prompt="another")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.headings[0] == "2 runs compared" and {PROMPT, "another"} <= set(page.headings)
    cells = re.findall(r"<td>([^<]*)</td>", text.split("<table>")[1].split("</table>")[0])
    assert cells == 2 * ["6", "3", "2.00", "9", "1.5 s", "250 ms"]
    assert set(page.scripts) >= {"glb-0", "glb-1"}


def test_whatever_is_missing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("prompt: a mug\n")
    report.write([report.RunSummary.read(tmp_path)], tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text())
    assert page.headings == ["a mug"] and page.images == page.curves == []
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "metrics.jsonl").write_text("[1]\n{}\n" + line("only", 3, 1, sds=float("nan")))
    run = report.RunSummary.read(tmp_path)
    assert (run.prompt, run.steps) == (tmp_path.name, 3)
    report.write([run], tmp_path / "b.html")
    assert "sds" not in Page((tmp_path / "b.html").read_text()).headings


def test_no_run_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        report.RunSummary.read(tmp_path / "nowhere")


def points(html: str) -> np.ndarray:
    return np.array([[float(v) for v in pair.split(",")] for pair in Page(html).curves[0].split()])


def test_curves_are_straight_where_the_series_is() -> None:
    linear = points(charts.curves("c", {"a": [(0, 1.0), (5, 2.0), (10, 3.0)]}, "steps"))
    powers = points(charts.curves("c", {"a": [(0, 1e-6), (5, 1e-4), (10, 1e-2)]}, "steps", log_y=True))
    for drawn in (linear, powers):
        np.testing.assert_allclose(drawn[1], (drawn[0] + drawn[2]) / 2, atol=0.11)
        assert drawn[2, 0] > drawn[0, 0] and drawn[2, 1] < drawn[0, 1]  # pictures count downwards


def test_curves_of_nothing_are_nothing() -> None:
    assert charts.curves("c", {"a": [(0, float("nan"))]}, "steps") == ""
    assert charts.curves("c", {"a": [(0, 0.0), (1, -1.0)]}, "steps", log_y=True) == ""
    assert "polyline" in charts.curves("c", {"a": [(0, 0.0)]}, "steps")  # a single point, a constant
    assert charts.shares("c", {"a": 0.0}, "s") == ""


@pytest.mark.parametrize("lo, hi", [(0, 1), (0, 1600), (-3.2, 7.7), (0.3, 0.4), (5, 5), (0, 0), (-2, -2), (1e-7, 3e-7)])
def test_ticks_cover_the_range_with_few_round_numbers(lo: float, hi: float) -> None:
    found = charts.ticks(lo, hi)
    assert found[0] <= lo + 1e-12 and found[-1] >= hi - 1e-12 and 2 <= len(found) <= 7
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])
    step = f"{found[1] - found[0]:.4e}".split("e")[0]
    assert float(step) in (1, 2, 2.5, 5)


@pytest.mark.parametrize("lo, hi", [(1e-6, 1e-2), (3e-7, 4), (1, 1), (1e-30, 1e3)])
def test_decades_cover_the_range(lo: float, hi: float) -> None:
    found = charts.decades(lo, hi)
    assert found[0] <= lo * 1.001 and found[-1] >= hi * 0.999 and 2 <= len(found) <= 8


def test_long_curves_keep_their_mean() -> None:
    long = [(x, float(np.sin(x) + 2)) for x in range(1000)]
    short = charts.thinned(long, 50)
    assert len(short) == 50 and np.mean(short, 0) == pytest.approx(np.mean(long, 0))
    assert charts.thinned([(0, 1.0), (1, 100.0)] * 3, 3, geometric=True)[0][1] == pytest.approx(10)


@pytest.mark.parametrize("value, label", [(0, "0"), (0.25, "0.25"), (1500, "1500"), (12000, "12k"), (1e-5, "1e-5"),
                                          (0.30000000000000004, "0.3"), (-2.5, "-2.5"), (2e6, "2e6")])
def test_numbers_are_short(value: float, label: str) -> None:
    assert charts.number(value) == label
