#!/usr/bin/env python
"""Tries on a GPU everything that only a GPU can tell, in under nine minutes and without a network.

    tools/rehearse_gpu.py --fill wheels             on a machine with a network: what the other one may lack
    tools/rehearse_gpu.py --from wheels --out OUT   on the one with a GPU
    tools/rehearse_gpu.py --small                   the same program on a CPU, with tiny models

Sections run one after the other, each in a process of its own with a time limit: machine (what there is), models (a Stable
Diffusion 2.1 of random weights), precision (half against float32), systems (steps of four systems at the papers' scale beside a
bare loop of the same calls), ranks (several on one device: bits, memory, bandwidth), oracles (each renderer and CUDA library
against its truth), tests (those marked gpu). Meanwhile gsplat, nerfacc and what has its sources in the folder are compiled.
OUT/rehearsal.json is written anew after each section, OUT/rehearsal.md is its table. Exit code 1: something was found bad.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path
from time import monotonic
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.rehearsal import packages  # noqa: E402  (after the path)
from tools.rehearsal.book import environment, shown  # noqa: E402

LIMITS = {"machine": 60, "models": 90, "precision": 60, "systems": 180, "ranks": 150, "oracles": 90, "tests": 90}  # s
PARENT = 15  # s kept for the table


class Rehearsal:
    """The sections, and what they have found so far."""

    def __init__(self, args: argparse.Namespace, python: str) -> None:
        self.args, self.python, self.begun = args, python, monotonic()
        self.env = environment(args.work) | {
            "REHEARSAL_FROM": str(args.sources.resolve() if args.sources else args.work), "REHEARSAL_PIP": sys.executable}
        self.sections: dict[str, dict] = {}
        self.running: list[subprocess.Popen] = []

    @property
    def left(self) -> float:
        """Seconds left of all."""
        return self.args.seconds - PARENT - (monotonic() - self.begun)

    def begin(self, name: str, module: str, limit: float) -> subprocess.Popen:
        """Starts a section."""
        rows = self.args.work / f"{name}.jsonl"
        rows.unlink(missing_ok=True)
        command = [self.python, "-m", f"tools.rehearsal.{module}", "--work", str(self.args.work), "--rows", str(rows),
                   "--seconds", f"{limit:.0f}", *["--small"] * self.args.small]
        log = open(self.args.work / f"{name}.log", "w")  # noqa: SIM115  (the section writes to it)
        return self.start(command, log)

    def start(self, command: list[str], log: IO[str]) -> subprocess.Popen:
        """A program in a session of its own, to be ended with this one at the latest."""
        self.running.append(subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT,
                                             start_new_session=True))
        return self.running[-1]

    def stop(self) -> None:
        """Ends what still runs."""
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def end(self, name: str, process: subprocess.Popen, limit: float, begun: float) -> None:
        """Waits for a section, or ends it, and takes in what it wrote."""
        try:
            process.wait(max(1.0, limit))
            state = "done" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = "out of time"
        lines = (self.args.work / f"{name}.jsonl")
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        said = (self.args.work / f"{name}.log").read_text(errors="replace").strip().splitlines()
        self.sections[name] = {"state": state, "seconds": round(monotonic() - begun, 1), "rows": rows}
        if state != "done":
            self.sections[name]["said"] = said[-15:]
        print(f"{name}: {state}, {len(rows)} rows, {monotonic() - begun:.1f} s", flush=True)
        self.write()

    def run(self) -> None:
        """All sections that were asked for, as far as time allows."""
        builds, start = None, monotonic()
        if not self.args.small and not {"oracles", "tests"}.isdisjoint(self.args.only):
            builds = self.begin("libraries", "packages", self.left - LIMITS["oracles"])
        for name in self.args.only:
            if builds is not None and name in ("oracles", "tests"):
                self.end("libraries", builds, self.left - LIMITS["oracles"], start)
                builds = None
            limit = min(LIMITS[name], self.left)
            if limit < 10:
                self.sections[name] = {"state": "not reached", "seconds": 0.0, "rows": []}
                self.write()
                continue
            print(f"{name} ...", flush=True)
            begun = monotonic()
            self.tests(limit) if name == "tests" else self.end(name, self.begin(name, name, limit), limit, begun)

    def tests(self, limit: float) -> None:
        """The tests marked gpu, but for those of libraries that do not compile."""
        report, begun = self.args.work / "tests.xml", monotonic()
        report.unlink(missing_ok=True)
        files = sorted(str(path) for path in (ROOT / "tests").glob("test_*.py") if "pytest.mark.gpu" in path.read_text())
        names = {"tiny-cuda-nn": "tcnn"}
        broken = [names.get(name, name) for name, fine in packages.libraries(self.args.work).items() if not fine]
        skip = ["-k", " and ".join(f"not {name}" for name in broken)] if broken else []
        with open(self.args.work / "tests.log", "w") as log:
            process = self.start([self.python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *skip,
                                  f"--junitxml={report}", *files], log)
            try:
                process.wait(limit)
                state = {0: "done", 5: "done"}.get(process.returncode, "failed")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                state = "out of time"
        rows = []
        for case in xml.parse(report).iter("testcase") if report.exists() else []:
            bad = [child for child in case if child.tag in ("failure", "error")]
            skipped = case.find("skipped") is not None
            note = (bad[0] if bad else case.find("skipped") if skipped else case).get("message", "") or ""
            rows.append({"what": case.get("name"), "value": "failed" if bad else "skipped" if skipped else "passed",
                         "ok": None if skipped else not bad, "note": note[:200]})
        self.sections["tests"] = {"state": state, "seconds": round(monotonic() - begun, 1), "rows": rows}
        if state != "done":
            self.sections["tests"]["said"] = (self.args.work / "tests.log").read_text().splitlines()[-25:]
        print(f"tests: {state}, {len(rows)} rows, {monotonic() - begun:.1f} s", flush=True)
        self.write()

    @property
    def plans(self) -> list[str]:
        """The commands of `mpiprop plan` with the costs that were measured."""
        rows = [row for section in self.sections.values() for row in section["rows"]]
        speed = next((f" --bandwidth {row['bandwidth']:.3g}" for row in rows if "bandwidth" in row), "")
        return [f"mpiprop plan {plan['config']} --ranks 8 --evaluate {plan['evaluate']:.3g} --fixed {plan['fixed']:.2f} "
                f"--rollout {plan['rollout']:.3g}{speed}  # stage {plan['stage']}, step {plan['tau']}"
                for row in rows if (plan := row.get("plan"))]

    @property
    def bad(self) -> list[str]:
        """What was found bad: rows, and sections that did not end well."""
        return [*(f"{name}: {section['state']}" for name, section in self.sections.items() if section["state"] != "done"),
                *(f"{name}: {row['what']}" for name, section in self.sections.items() for row in section["rows"]
                  if row.get("ok") is False)]

    def write(self) -> None:
        """The record and the table."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        record = {"small": self.args.small, "seconds": round(monotonic() - self.begun, 1), "bad": self.bad, "plan": self.plans,
                  "sections": self.sections}
        (self.args.out / "rehearsal.json").write_text(json.dumps(record, indent=1) + "\n")
        (self.args.out / "rehearsal.md").write_text(self.table() + "\n")

    def table(self) -> str:
        """Everything as one Markdown table, the commands below it."""
        lines = ["| section | what | found | at most | |", "|---|---|---|---|---|"]
        for name, section in self.sections.items():
            lines.append(f"| **{name}** | {section['state']} | {section['seconds']} s | | |")
            for row in section["rows"]:
                mark = {True: "ok", False: "**bad**"}.get(row.get("ok"), "")
                cells = (row["what"], f"{shown(row.get('value'))} {row.get('unit', '')}".strip(), shown(row.get("limit")),
                         f"{mark} {row.get('note', '')}".strip())
                lines.append("| | " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
        return "\n".join([*lines, "", *(f"    {command}" for command in self.plans)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fill", type=Path, metavar="FOLDER", help="download wheels into FOLDER and stop")
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="the Python that they are for (default: 3.12)")
    parser.add_argument("--from", type=Path, dest="sources", metavar="FOLDER", help="wheels to install where their packages "
                        "are lacking, and folders of sources: nvdiffrast*, tiny-cuda-nn*")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "rehearsal")), metavar="FOLDER",
                        help="where the results go (default: $OUT, else rehearsal)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mpiprop-rehearsal", metavar="FOLDER",
                        help="where models (3 GB), builds and runs go; what is there already is used again")
    parser.add_argument("--only", default=",".join(LIMITS), metavar="NAMES", help="sections, separated by commas")
    parser.add_argument("--seconds", type=float, default=520, help="for all (default: 520)")
    parser.add_argument("--small", action="store_true", help="on the CPU, with tiny models, in a minute or two")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(LIMITS):
        parser.error(f"--only: no section {min(unknown)!r}; there are {', '.join(LIMITS)}")
    if args.sources and not args.sources.is_dir():
        parser.error(f"--from: no folder {args.sources}")
    args.work = args.work.resolve() / ("small" if args.small else "full")
    return args


def main() -> int:
    args = arguments()
    if args.fill:
        packages.fill(args.fill, args.python, ROOT / "tools" / "constraints.txt")
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    rehearsal = Rehearsal(args, packages.install(args.sources.resolve(), args.work) if args.sources else sys.executable)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        rehearsal.run()
    finally:
        rehearsal.stop()
    print(f"{rehearsal.table()}\n\n{args.out / 'rehearsal.json'}; "
          + (f"bad: {'; '.join(rehearsal.bad)}" if rehearsal.bad else "nothing bad"), flush=True)
    return int(bool(rehearsal.bad))


if __name__ == "__main__":
    sys.exit(main())
