"""The terminal that somebody may be looking at. Loads nothing: signal handlers need it from a program's first moment on."""

import os
import sys

CLEAR = "\r\x1b[K"  # an empty line, in place of the one that the terminal shows


def on_terminal() -> bool:
    """Whether somebody watches: mpirun gives its first rank a pseudo-terminal even where its own output is a file."""
    return bool(terminal()) if "PMIX_RANK" in os.environ else sys.stdout.isatty()


def terminal() -> str:
    """The terminal that mpirun, which started this process, writes to; empty where there is no mpirun or no terminal."""
    try:
        device = os.readlink(f"/proc/{os.getppid()}/fd/1") if "PMIX_RANK" in os.environ else ""
    except OSError:
        return ""
    return device if device.startswith("/dev/pts/") else ""


def tell(line: str) -> None:
    """A line for the user from anywhere, signal handlers included, where Python's own streams may be at work."""
    try:
        device = terminal()
        console = os.open(device, os.O_WRONLY | os.O_NOCTTY) if device else os.dup(2)
        os.write(console, f"{line}\n".encode())
        os.close(console)
    except OSError:
        pass  # nobody is there any more


def put(text: str, error: bool = False) -> None:
    """`text` on standard output or standard error. Where nobody takes it any more, what follows goes nowhere."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, end="", file=stream, flush=True)
    except OSError:  # the terminal was closed, or the reader of a pipe has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
