#!/usr/bin/env python
"""Kills runs at random moments, resumes them on other numbers of ranks, and compares how they end.

    tools/stress.py --rounds 100

A round starts or resumes a run of the toy configuration on 1 to 4 ranks and kills, with SIGKILL, the whole job or one of its
ranks: during start-up, between slides, or while a checkpoint is being written. After a few rounds the run may finish; the
numbers it ends with must be those of the undisturbed sequential run, to the last bit. A job that does not end, a checkpoint
that is gone, damaged or older than the one before, and any other end count as failures: exit code 1.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic, sleep, time

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpiprop import checkpoint  # noqa: E402  (after the path)
from mpiprop.core.errors import UserError  # noqa: E402

MOMENTS = ("start-up", "slides", "writing")
SHORT = ["turntable.frames=1", "turntable.size=8", "mesh.resolution=8"]


class Failure(Exception):
    """What must not happen."""


class Job:
    """A run of the toy configuration in `folder`, in a session of its own."""

    def __init__(self, folder: Path, ranks: int, *overrides: str) -> None:
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        lines = (ROOT / "tools" / "mpi.env").read_text().splitlines()
        env = dict(line.split("=", 1) for line in lines if not line.startswith("#")) | os.environ
        env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
        self.folder, self.begun, self.said = folder, time(), folder.with_suffix(".said")
        with open(self.said, "w") as said:
            self.process = subprocess.Popen([*launcher, sys.executable, "-m", "mpiprop", "run", "toy", *SHORT, *overrides,
                                             "--out", folder, "--resume"], env=env, start_new_session=True,
                                            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)

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

    def kill(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self, limit: float) -> int:
        """The exit code, when all processes are gone. Raises Failure if for `limit` seconds nothing happens in the folder."""
        seen, late = -1.0, 0.0
        while not self.over or self.members():
            if (touched := changed(self.folder)) != seen:
                seen, late = touched, monotonic() + limit
            if monotonic() > late:
                self.kill(list(hung := self.members()))
                self.process.wait()
                raise Failure(f"hung: nothing new for {limit:.0f} s, still there: {', '.join(hung.values())}")
            sleep(0.02)
        return self.process.returncode


def until(job: Job, holds: Callable[[], bool], limit: float) -> None:
    """Waits until `holds`, or the job is over. Raises Failure after `limit` seconds."""
    late = monotonic() + limit
    while not (holds() or job.over):
        if monotonic() > late:
            job.kill(list(job.members()))
            raise Failure(f"no progress in {limit:.0f} s")
        sleep(0.0005)


def changed(path: Path) -> float:
    """When the file, or what a folder holds, last changed; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def disturb(job: Job, folder: Path, draw: Random, limit: float) -> tuple[str, str]:
    """Kill the job or, where it has several, a rank of it at a random moment: when and whom ("" if it was over before)."""
    moment, one = draw.choice(MOMENTS), draw.random() < 0.6
    if moment == "start-up":
        sleep(draw.uniform(0, 4))
    else:
        until(job, lambda: changed(folder / "metrics.jsonl") > job.begun, limit)
        sleep(draw.uniform(0, 2))
        if moment == "writing":
            until(job, (folder / ".window.h5.part").exists, limit)
            sleep(draw.uniform(0, 0.01))
    members = job.members()
    ranks = [pid for pid, name in members.items() if name.isdecimal()]
    if job.over:
        return moment, ""
    if one and ranks:
        job.kill([victim := draw.choice(sorted(ranks))])
        return moment, f"rank {members[victim]}"
    job.kill(list(members))
    return moment, "all"


def reached(folder: Path) -> int:
    """tau of the folder's checkpoint, -1 without one. Raises Failure if it is damaged."""
    if not (folder / "window.h5").exists():
        return -1
    try:
        return checkpoint.load(folder / "window.h5").window.x.tau
    except UserError as error:
        raise Failure(str(error)) from None


def finish(folder: Path, limit: float, *overrides: str, ranks: int = 1) -> bytes:
    """/x/flat of the run in `folder`, brought to its end. Raises Failure if it does not get there."""
    job = Job(folder, ranks, *overrides)
    code = job.end(limit)
    if code or not (folder / "done").exists():
        raise Failure(f"exit {code} on {ranks} ranks: {' / '.join(job.said.read_text().splitlines()[-3:])}")
    return checkpoint.load(folder / "window.h5").window.x.theta.flat.numpy().tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of whom, when, and on how many ranks")
    parser.add_argument("--steps", type=int, default=60, help="T")
    parser.add_argument("--limit", type=float, default=120, help="seconds without any sign after which a job counts as hung")
    args = parser.parse_args()
    draw, kills, failures, runs = Random(args.seed), Counter(), [], 0
    length = f"stages.0.steps={args.steps}"
    exact = (length, "window.size=4", "window.threshold=0", "checkpoint.every_s=0")
    with tempfile.TemporaryDirectory(prefix="mpiprop-stress-") as base:
        truth = finish(Path(base) / "undisturbed", args.limit, length, "window.size=1")
        print("round   run  ranks  when      whom    exit    s    tau", flush=True)
        while kills.total() < args.rounds:
            runs += 1
            folder = Path(base) / f"run-{runs}"
            try:
                tau, left = -1, min(draw.randint(1, 8), args.rounds - kills.total())
                while left and not (folder / "done").exists():
                    job = Job(folder, ranks := draw.randint(1, 4), *exact)
                    moment, whom = disturb(job, folder, draw, args.limit)
                    began = monotonic()
                    code = job.end(args.limit)
                    before, tau = tau, reached(folder)
                    if tau < before:
                        raise Failure(f"the checkpoint fell back from step {before} to {tau}")
                    if whom:
                        left -= 1
                        kills[moment, whom if whom == "all" else "a rank", code] += 1
                    print(f"{kills.total():5d} {runs:5d}  {ranks:5d}  {moment:8s}  {whom or 'over':6s} {code:5d} "
                          f"{monotonic() - began:4.1f}  {tau:5d}", flush=True)
                if finish(folder, args.limit, *exact, ranks=draw.randint(1, 4)) != truth:
                    raise Failure("ends with other numbers than the undisturbed run")
            except Failure as failure:
                failures.append(f"run {runs}, after {kills.total()} kills: {failure}")
                print(failures[-1], flush=True)
            else:
                shutil.rmtree(folder)
    print(f"\n{kills.total()} kills in {runs} runs (seed {args.seed}); {len(failures)} runs lost or different")
    for (moment, whom, code), count in sorted(kills.items()):
        print(f"  {count:4d}  {whom:6s} during {moment:8s}  exit {code}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
