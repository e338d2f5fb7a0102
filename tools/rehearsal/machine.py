"""What there is: device, versions, which packages are lacking, whether ranks can be started."""

import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from tools.rehearsal.book import Section, environment
from tools.rehearsal.packages import LIBRARIES

NEEDED = ("torch", "diffusers", "transformers", "peft", "accelerate", "huggingface_hub", "safetensors", "h5py", "mpi4py",
          "numpy", "scipy", "scikit-image", "trimesh", "xatlas", "fast-simplification", "plyfile", "pillow", "pyyaml", "pytest",
          "tensorboard")


def main() -> None:
    section = Section.of(__doc__)
    section.row("Python", f"{platform.python_version()} on {platform.machine()}")
    for name in NEEDED:
        with section.attempt(name):
            try:
                section.row(name, version(name))
            except PackageNotFoundError:
                section.row(name, "lacking", ok=False, note="the program needs it")
    for name in LIBRARIES:
        section.row(name, "there" if find_spec(LIBRARIES[name]) else "not there (optional)")
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        section.row("device", about.name, note=f"{about.total_memory / 1e9:.1f} GB, compute capability {about.major}."
                    f"{about.minor}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} of them")
    else:
        section.row("device", "cpu", ok=section.small, note="no CUDA device" if not section.small else "")
    section.row("nvcc", _first("nvcc", "--version") or "not there: gsplat and nerfacc cannot be compiled")
    launcher = shutil.which("mpirun", path=environment(section.work)["PATH"])
    section.row("mpirun", _first(launcher, "--version") if launcher else "not there: no runs of several ranks")
    with section.attempt("MPI library"):
        said = subprocess.run([sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version())"], text=True,
                              capture_output=True, timeout=60, env=environment(section.work))
        section.row("MPI library", (said.stdout.splitlines() or [said.stderr.strip().splitlines()[-1]])[0][:80])


def _first(*command: str | None) -> str:
    """The last full line of what a program says of its version."""
    try:
        said = subprocess.run(command, text=True, capture_output=True, timeout=60).stdout
    except OSError:
        return ""
    lines = [line for line in said.splitlines() if "release" in line or "MPI" in line or "HYDRA" in line]
    return lines[0].strip() if lines else ""


if __name__ == "__main__":
    main()
