"""The entry point of the command line: finds the command, parses its arguments, runs it, reports errors."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import mpiprop
from mpiprop.cli.parser import parsers
from mpiprop.core.errors import DONE, FAILED, MISTAKE, RunError, UserError, suggestion
from mpiprop.core.launcher import launched, launched_rank
from mpiprop.run import preemption

HELP = ("--help", "-h")
HEAD = f"""{mpiprop.__doc__}

usage: mpiprop COMMAND ...            or, on several ranks: mpirun -n N python -m mpiprop COMMAND ...

  mpiprop run demo prompt="a green mushroom"     makes an object in minutes, on the built-in model, without a GPU
  mpiprop report runs/demo-a-green-mushroom-0    one page with pictures, the mesh and how the run went
  mpiprop run --help                             the configurations, and where every key is explained

commands (each has --help):"""
TAIL = """
Without a command: run demo.

exit codes: 0 done; 2 a mistake in what was asked; 75 preempted, checkpoint written, run again with --resume; 130 a command
  other than run was interrupted; 1 anything else
signals: SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 on any rank, or a file `stop` in the run folder, save a
  checkpoint and exit 75; a second SIGINT leaves at once
environment: MPIPROP_CUDA_AWARE=1 hands device memory to MPI, auto does where the library can, 0 (default) goes through host
  memory; MPIPROP_TENSORBOARD=1 also writes RUN/tensorboard"""
ALONE = ("mpiprop: no command, so this is `mpiprop run demo`, an object on the built-in model in some minutes "
         "(other commands: mpiprop --help)")


def dispatch(words: Sequence[str]) -> int:
    """Run the command line `words`; returns the exit code."""
    if not words:
        if launched_rank() == 0:
            print(ALONE, flush=True)
        words = ["run", "demo"]
    name, *rest = words
    known = parsers()
    if name in HELP:
        print("\n".join([HEAD, *(f"  {name:10}{parser.description}" for name, parser in known.items()), TAIL]))
        return DONE
    if name == "--version":
        print(f"mpiprop {mpiprop.__version__}")
        return DONE
    if name == "run" and set(HELP) & set(rest):
        from mpiprop.cli import manual
        print(manual.answer([word for word in rest if word not in HELP]))
        return DONE
    if name not in known:
        from mpiprop.config import loader
        raise UserError(f"{name}: no such command; " + (f"for that configuration: mpiprop run {name}" if name in loader.names()
                        else suggestion(name, known).removeprefix("; ")))
    args = known[name].read(rest)
    if name in ("run", "plan"):
        _complete(args, name)
    if name == "run":
        if args.ranks:
            from mpiprop.cli import launch
            if launch.needed(args.ranks):
                return launch.launch(args.ranks, words)
        from mpiprop.run import program
        return program.main(args.config, args.overrides, args.out, args.resume, args.check)
    from mpiprop.cli import commands
    return getattr(commands, name)(args)


def _complete(args: argparse.Namespace, name: str) -> None:
    """Raises UserError where the configuration is missing, or has a mistake that shows before torch is loaded.

    Under a launcher only the former: there all ranks read the configuration together, and rank 0 reports its mistakes.
    """
    from mpiprop.config import loader
    from mpiprop.run import inputs

    if args.config is None or "=" in args.config and not Path(args.config).exists():
        raise UserError(f"CONFIG is missing: mpiprop {name} CONFIG ..., a YAML file or one of {', '.join(loader.names())}")
    if not launched():
        run = loader.load(args.config, args.overrides)
        if name == "run":
            inputs.check(args.config, run)


def main() -> int:
    """The console script."""
    preemption.listen(sys.argv[1:])
    if launched_rank() and set(HELP) & set(sys.argv):
        return DONE  # the first rank tells
    try:
        code = dispatch(sys.argv[1:])
        sys.stdout.flush()
        return code
    except (UserError, RunError) as error:
        if launched_rank() == 0:
            print(f"mpiprop: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, UserError) else FAILED
    except BrokenPipeError:  # `mpiprop run --help all | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
