#!/usr/bin/env python
"""Ends runs at random moments, resumes them on other numbers of ranks, and compares how they end.

    tools/stress.py --rounds 100
    tools/stress.py --rounds 60 --configs demo/magic3d demo/prolificdreamer demo/dreamgaussian --signals KILL INT TERM

A round starts or resumes a run on 1 to 4 ranks and sends a signal to the whole job or one of its ranks: during start-up,
between slides, while a checkpoint is being written, between stages, or while results are written. After a few rounds the run
may finish. Its numbers must be those of the undisturbed sequential run, to the last bit, its pictures and meshes the same
files, and its log whole. A job that does not end, a checkpoint that is gone, damaged or older than the one before, SIGINT or
SIGTERM without exit code 75, and any other end count as failures: exit code 1.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic, sleep, time

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop.config import loader  # noqa: E402  (after the path)
from mpiprop.run import checkpoint  # noqa: E402
from mpiprop.core.errors import DONE, PREEMPTED, UserError  # noqa: E402

EXACT = ("window.size=4", "window.threshold=0", "checkpoint.every_s=0")
SHORT = {"turntable": {"frames": 16, "size": 24}, "mesh": {"resolution": 16, "texture": 32, "faces": 300}}
SMALL = {  # of shapes, where they have such keys
    "levels": 4, "log2_table": 10, "hidden": 16, "occupancy_resolution": 16, "start_level": 2, "update_steps": 3,
    "number": 150, "densify_from": 0, "densify_every": 4, "densify_gradient": 1.0e-3, "texture": 32, "faces": 300}
RESOLUTION = {"DMTet": 16, "TexturedMesh": 24}
MOMENTS = ("start-up", "slides", "writing", "stages", "results")
DENSITY = 0.3  # where the surface of a barely trained cloud is
RESULTS = ("*.png", "*.ply", "*.glb", "*.gif", "views/*.png")  # what two runs with the same numbers make alike


class Failure(Exception):
    """What must not happen."""


@dataclass
class Case:
    """A configuration made small, and what its undisturbed run ends with."""

    name: str
    steps: int
    folder: Path  # of the undisturbed run

    def __post_init__(self) -> None:
        tree = loader.read(self.name)
        self.stages = [stage["name"] for stage in tree["stages"]]
        demo = self.name != "toy"
        keys = SHORT | ({"preview": {"every_s": 0.5, "size": 16, "views": 2}} if demo else {})
        for i, stage in enumerate(tree["stages"]):
            at, shape = f"stages.{i}.", stage["shape"]
            keys[f"{at}steps"] = self.steps
            if demo:
                keys |= {f"{at}shape.{key}": value for key, value in SMALL.items() if key in shape}
                keys |= {f"{at}terms.0.views.batch": 1, f"{at}terms.0.views.size": 16}
                if shape["use"] in RESOLUTION:
                    keys[f"{at}shape.resolution"] = RESOLUTION[shape["use"]]
                if shape["use"] == "TexturedMesh":
                    keys[f"{at}shape.threshold"] = DENSITY
                if "samples" in stage["render"]:
                    keys[f"{at}render.samples"] = 24
        self.words = [self.name, *(f"{key}={json.dumps(value)}" for key, value in keys.items())]

    def reached(self, folder: Path) -> tuple[int, int]:
        """Stage and step of the folder's checkpoint, (-1, -1) without one. Raises Failure if it is damaged."""
        if not (folder / "window.h5").exists():
            return -1, -1
        try:
            found = checkpoint.load(folder / "window.h5")
        except UserError as error:
            raise Failure(str(error)) from None
        return self.stages.index(found.stage), found.window.x.tau

    def compare(self, folder: Path) -> None:
        """Raises Failure unless the finished run in `folder` is the undisturbed one in all that it made."""
        one, other = (checkpoint.load(run / "window.h5") for run in (self.folder, folder))
        if one.window.x.theta.flat.numpy().tobytes() != other.window.x.theta.flat.numpy().tobytes():
            raise Failure("ends with other numbers than the undisturbed run")
        if one.stage != other.stage or not other.complete:
            raise Failure(f"its checkpoint ends in stage {other.stage}, complete: {other.complete}")
        files, expected = ({path.relative_to(run).as_posix() for path in run.rglob("*") if path.parent.name != "previews"}
                           for run in (folder, self.folder))
        if files != expected:
            raise Failure(f"lacks {sorted(expected - files)}, has {sorted(files - expected)}")
        for path in {path for pattern in RESULTS for path in self.folder.glob(pattern)}:
            if path.read_bytes() != (folder / path.relative_to(self.folder)).read_bytes():
                raise Failure(f"{path.relative_to(self.folder)} differs")
        if not (folder / "report.html").read_text().rstrip().endswith("</html>"):
            raise Failure("report.html is cut short")
        slides = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for stage in self.stages:
            mine = [slide for slide in slides if slide["stage"] == stage]
            if [slide["k"] for slide in mine] != [*range(1, len(mine) + 1)] or sum(s["stride"] for s in mine) != self.steps:
                raise Failure(f"metrics.jsonl: slides of stage {stage} are missing or there twice")


class Job:
    """A run of `case` in `folder`, in a session of its own: a process alone, ranks of mpirun, or those of `--ranks`."""

    def __init__(self, case: Case, folder: Path, ranks: int, *overrides: str, own: bool = False) -> None:
        lines = (ROOT / "tools" / "mpi.env").read_text().splitlines()
        env = dict(line.split("=", 1) for line in lines if not line.startswith("#")) | os.environ
        env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(ROOT),
                "TMPDIR": tempfile.mkdtemp(dir=folder.parent)}  # an mpirun fails on files of a killed one with its number
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 and not own else []
        words = [*case.words, *overrides, *(["--ranks", str(ranks)] if ranks > 1 and own else []), "--out", folder, "--resume"]
        self.how = "alone" if ranks == 1 else "--ranks" if own else "mpirun"
        self.folder, self.begun, self.said = folder, time(), folder.with_suffix(".said")
        with open(self.said, "w") as said:
            self.process = subprocess.Popen(
                ["env", "--default-signal=INT,HUP", *launcher, sys.executable, "-m", "mpiprop", "run", *words], env=env,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def members(self) -> dict[int, str]:
        """The job's processes: the number of the MPI rank that each is, or its name."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone since
                if os.getsid(pid := int(folder.name)) == self.process.pid:
                    words = dict(word.split("=", 1) for word in (folder / "environ").read_text().split("\0") if "=" in word)
                    found[pid] = words.get("OMPI_COMM_WORLD_RANK", (folder / "comm").read_text().strip())
        return found

    def send(self, number: int, pids: Sequence[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, limit: float) -> int:
        """The exit code, when all processes are gone. Raises Failure if for `limit` seconds nothing happens in the folder."""
        seen, late = -1.0, 0.0
        while not self.over or self.members():
            if (touched := changed(self.folder)) != seen:
                seen, late = touched, monotonic() + limit
            if monotonic() > late:
                self.send(signal.SIGKILL, list(hung := self.members()))
                self.process.wait()
                raise Failure(f"hung: nothing new for {limit:.0f} s, still there: {', '.join(hung.values())}")
            sleep(0.02)
        return self.process.returncode

    def words(self) -> str:
        """The last that it said."""
        return " / ".join(self.said.read_text().splitlines()[-3:])


def hears(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM."""
    try:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return bool(int(caught[1], 16) >> signal.SIGTERM - 1 & 1)


def until(job: Job, holds: Callable[[], bool], limit: float) -> None:
    """Waits until `holds`, or the job is over. Raises Failure after `limit` seconds."""
    late = monotonic() + limit
    while not (holds() or job.over):
        if monotonic() > late:
            job.send(signal.SIGKILL, list(job.members()))
            raise Failure(f"no progress in {limit:.0f} s")
        sleep(0.0005)


def changed(path: Path) -> float:
    """When the file, or what a folder holds, last changed; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def ended(case: Case, folder: Path) -> int:
    """How many stages have logged their last slide."""
    with suppress(OSError):
        text = (folder / "metrics.jsonl").read_text()
        return sum(f'"stage": "{stage}", "tau": {case.steps},' in text for stage in case.stages)
    return 0


def disturb(case: Case, job: Job, name: str, moments: Sequence[str], draw: Random, limit: float) -> tuple[str, str]:
    """Send the signal `name` at one of `moments`: when and to whom ("" if the job had come to its end)."""
    folder = job.folder
    before = ended(case, folder)
    still = [moment for moment in moments if moment != "stages" or before < len(case.stages) - 1]
    moment = draw.choice(still or ["results"])
    if moment == "start-up":
        sleep(draw.uniform(0, 4))
    elif moment == "stages":
        until(job, lambda: ended(case, folder) > before, limit)
        sleep(draw.uniform(0, 1.5))
    elif moment == "results":
        until(job, lambda: changed(folder / "views") > job.begun, limit)
        sleep(draw.uniform(0, 0.7))
    else:
        until(job, lambda: changed(folder / "metrics.jsonl") > job.begun, limit)
        sleep(draw.uniform(0, 1))
        if moment == "writing":
            until(job, (folder / ".window.h5.part").exists, limit)
            sleep(draw.uniform(0, 0.01))
    number, members, one = getattr(signal, f"SIG{name}"), job.members(), draw.random() < 0.5
    ranks = sorted(pid for pid, name in members.items() if name.isdecimal())
    if job.over:
        return moment, ""
    if one and ranks:
        victims, whom = [draw.choice(ranks)], "a rank"
    elif number == signal.SIGKILL:
        victims, whom = list(members), "all"
    else:
        victims, whom = [job.process.pid], job.how
    heard = all(map(hears, victims))
    job.send(number, victims)
    code = job.end(limit)
    if code == DONE and (folder / "done").exists():
        return moment, ""
    asked = number != signal.SIGKILL and heard and whom != "mpirun"  # which has its own code
    if asked and code != PREEMPTED:
        raise Failure(f"SIG{name} to {whom} during {moment}: exit {code}: {job.words()}")
    return moment, whom


def finish(case: Case, folder: Path, limit: float, *overrides: str, ranks: int = 1) -> None:
    """Brings the run in `folder` to its end. Raises Failure if it does not get there."""
    job = Job(case, folder, ranks, *overrides)
    code = job.end(limit)
    if code or not (folder / "done").exists():
        raise Failure(f"exit {code} on {ranks} ranks: {job.words()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="signals in all, those not counted that come too late")
    parser.add_argument("--configs", nargs="+", default=["toy"], metavar="CONFIG", help="toy, demo/...: taken in turn")
    parser.add_argument("--signals", nargs="+", default=["KILL"], choices=["KILL", "INT", "TERM", "HUP", "USR1"])
    parser.add_argument("--moments", nargs="+", default=MOMENTS, choices=MOMENTS)
    parser.add_argument("--ranks", type=int, default=4, help="at the most")
    parser.add_argument("--seed", type=int, default=0, help="of whom, when, and on how many ranks")
    parser.add_argument("--steps", type=int, help="T of each stage (default: toy 60, others 12)")
    parser.add_argument("--limit", type=float, default=120, help="seconds without any sign after which a job counts as hung")
    args = parser.parse_args()
    draw, sent, failures, runs = Random(args.seed), Counter(), [], 0
    with tempfile.TemporaryDirectory(prefix="mpiprop-stress-") as base:
        cases = [Case(name, args.steps or (60 if name == "toy" else 12), Path(base) / name.replace("/", "-"))
                 for name in args.configs]
        for case in cases:
            finish(case, case.folder, args.limit, "window.size=1")
        print("round   run  config                how      when      signal  whom     exit    s  reached", flush=True)
        while sent.total() < args.rounds:
            case, runs = cases[runs % len(cases)], runs + 1
            folder = Path(base) / f"run-{runs}"
            try:
                now, left = (-1, -1), min(draw.randint(1, 8), args.rounds - sent.total())
                while left and not (folder / "done").exists():
                    job = Job(case, folder, draw.randint(1, args.ranks), *EXACT, own=draw.random() < 0.5)
                    name, began = draw.choice(args.signals), monotonic()
                    moment, whom = disturb(case, job, name, args.moments, draw, args.limit)
                    code = job.end(args.limit)
                    before, now = now, case.reached(folder)
                    if now < before:
                        raise Failure(f"the checkpoint fell back from {before} to {now}")
                    if whom:
                        left -= 1
                        sent[moment, name, whom, code] += 1
                    print(f"{sent.total():5d} {runs:5d}  {case.name:20s}  {job.how:7s}  {moment:8s}  {name:6s}  "
                          f"{whom or 'over':7s} {code:4d} {monotonic() - began:4.1f}  {case.stages[max(0, now[0])]} {now[1]}",
                          flush=True)
                finish(case, folder, args.limit, *EXACT, ranks=draw.randint(1, args.ranks))
                case.compare(folder)
            except Failure as failure:
                failures.append(f"run {runs} of {case.name}, after {sent.total()} signals: {failure}")
                print(failures[-1], flush=True)
            else:
                shutil.rmtree(folder)
    print(f"\n{sent.total()} signals in {runs} runs (seed {args.seed}); {len(failures)} runs lost or different")
    for (moment, name, whom, code), count in sorted(sent.items()):
        print(f"  {count:4d}  SIG{name:4s} to {whom:7s} during {moment:8s}  exit {code}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
