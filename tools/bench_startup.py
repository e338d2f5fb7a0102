"""What a short command or a mistake takes, from the shell: python -m tools.bench_startup [--times 5].

The least of several times, each in a process of its own, and whether it loaded torch. A folder without any run is enough.
"""

import argparse
import subprocess
import sys
import tempfile
from time import perf_counter

COMMANDS = (
    "--help", "--version", "run --help", "run demo --help", "run --help all", "run --help window", "export --help",
    "run dmeo", "run nothing.yaml", "run demo sed=3", "run demo stages.0.shape.levles=3",
    "run demo stages.0.shape.use=HashGird",
    "run demo --resmue", "exprot", "export nowhere", "inspect nowhere", "evaluate nowhere", "report nowhere",
    "plan nothing --ranks 8", "run demo/zero123 image=nowhere.png", "run demo from=nowhere")
LOADED = "import sys; from mpiprop.cli.main import main; code = main(); sys.exit(100 * ('torch' in sys.modules) + code)"


def measure(words: list[str], times: int, folder: str) -> tuple[float, int, bool]:
    """Seconds, exit code, and whether torch was loaded."""
    seconds = []
    for _ in range(times):
        start = perf_counter()
        code = subprocess.run([sys.executable, "-m", "mpiprop", *words], cwd=folder, capture_output=True).returncode
        seconds.append(perf_counter() - start)
    told = subprocess.run([sys.executable, "-c", LOADED, *words], cwd=folder, capture_output=True).returncode
    return min(seconds), code, told >= 100


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_startup", description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=5, help="runs of each command (default: 5)")
    times = parser.parse_args().times
    print("| command | s | exit code | loads torch |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            seconds, code, torch = measure(command.split(), times, folder)
            print(f"| `mpiprop {command}` | {seconds:.2f} | {code} | {'yes' if torch else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
