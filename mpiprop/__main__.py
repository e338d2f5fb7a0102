"""mpiprop: text or image to 3D by score distillation, many optimiser steps at once, over MPI.

  mpirun -n N python -m mpiprop run CONFIG [key=value ...] [--out DIR] [--resume]

Exit codes: 0 done; 2 a mistake in what was asked; 75 preempted, checkpoint written, run again with --resume; 1 anything else.
"""

import sys

from . import stop

if __name__ == "__main__":
    stop.listen(sys.argv[1:])  # before the slow imports

import argparse
from collections.abc import Callable
from pathlib import Path

from . import __version__
from .core.errors import DONE, FAILED, MISTAKE, RunError, UserError

FORMATS = ("glb", "obj", "ply", "mp4", "gif")
EPILOG = """signals: SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 on any rank, or a file `stop` in the run folder, save a
  checkpoint and exit 75; a second SIGINT leaves at once
environment: MPIPROP_CUDA_AWARE=1 hands device memory to MPI, auto does where the library can, 0 (default) goes through host
  memory; MPIPROP_TENSORBOARD=1 also writes RUN/tensorboard
every configuration key with its default: mpiprop run --help"""


def positive(kind: type) -> Callable[[str], float]:
    """An argument's kind: numbers above 0."""
    def positive(word: str) -> float:
        if not 0 < (number := kind(word)) < float("inf"):
            raise ValueError
        return number
    return positive


def share(word: str) -> float:
    """An argument's kind: numbers from 0 to 1."""
    if not 0 <= (number := float(word)) <= 1:
        raise ValueError
    return number


class Parser(argparse.ArgumentParser):
    """One line for a mistake, from the first rank only."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    top = Parser(prog="mpiprop", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"mpiprop {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, text: str) -> Parser:
        return commands.add_parser(name, help=text, description=text,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)

    run = command("run", "Make an object. Without any command: run demo.")
    run.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one in configs/")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/CONFIG-PROMPT-SEED)")
    run.add_argument("--resume", action="store_true", help="continue DIR, or the newest unfinished run of this config, prompt "
                     "and seed; starts afresh where there is none")
    run.add_argument("--check", action="store_true", help="check all that the run needs, print its plan, and stop before the "
                     "first step; writes nothing")
    run.add_argument("--ranks", type=positive(int), metavar="N", help="start N ranks on this host (rank 0 leads, the others "
                     "evaluate) with an mpirun that saves on Ctrl-C")
    run.add_argument("overrides", metavar="key=value", nargs="*", help='prompt="...", image=FILE, seed=1, ...')

    export = command("export", "Files from a finished or unfinished run.")
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--format", choices=FORMATS, default="glb")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: mesh.FORMAT or turntable.FORMAT in RUN")
    export.add_argument("--resolution", type=int, metavar="R", help="cells a side of a mesh, pixels a side of a film")

    evaluate = command("evaluate", "CLIP similarity, CLIP R-Precision and CLIP-FID over the views of runs.")
    evaluate.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    evaluate.add_argument("--prompts", type=Path, metavar="FILE", help="prompts to retrieve from, one a line or JSON "
                          "(default: the built-in judge's whole vocabulary)")
    evaluate.add_argument("--clip", metavar="ID_OR_FOLDER", help="any CLIP model (default: the built-in judge)")
    evaluate.add_argument("--reference", type=Path, metavar="FOLDER", help="pictures that CLIP-FID compares with")
    evaluate.add_argument("--json", action="store_true", help="machine-readable")

    report = command("report", "One self-contained HTML page of one run, or comparing several.")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, metavar="FILE.html", help="default: report.html in the first RUN")

    plan = command("plan", "Predicted time, speed-up, memory and traffic of each window and number of shards on N ranks.")
    plan.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one in configs/")
    plan.add_argument("--ranks", type=int, required=True, metavar="N", help="ranks there are, rank 0 included")
    plan.add_argument("--measured", type=Path, metavar="RUN", help="run folder that tells what things take")
    plan.add_argument("--measured-ranks", type=positive(int), metavar="M", help="ranks that RUN had (default: what it "
                      "says, else 1 for window 1 and 1 + window x shards for others)")
    plan.add_argument("--evaluate", type=positive(float), metavar="SECONDS", help="of one evaluation of a whole batch on one "
                      "device (default: RUN's)")
    plan.add_argument("--bandwidth", type=positive(float), metavar="GB/s", help="of a rank's link (default: RUN's, "
                      "else 2.5)")
    plan.add_argument("--rollout", type=positive(float), metavar="SECONDS", help="of an optimiser step on rank 0 (default: "
                      "RUN's, else timed on this CPU)")
    plan.add_argument("--fixed", type=share, default=0.1, metavar="SHARE", help="of an evaluation that does not depend on the "
                      "number of views (default: 0.1)")
    plan.add_argument("--json", action="store_true", help="machine-readable")
    plan.add_argument("overrides", metavar="key=value", nargs="*", help="as for run")

    inspect = command("inspect", "What a checkpoint holds, and whether it verifies.")
    inspect.add_argument("file", type=Path, metavar="FILE.h5")
    return top


def dispatch(words: list[str]) -> int:
    """Do what the command line says; the exit code."""
    if words[:1] == ["run"] and ("--help" in words or "-h" in words):
        from . import config
        run = parser()._subparsers._group_actions[0].choices["run"]
        run.epilog = f"configurations: {', '.join(config.names())}\n\n{config.describe()}"
        run.print_help()
        return DONE
    args, left = parser().parse_known_args(words or ["run", "demo"])
    if args.command is None:
        raise UserError("a command is needed: run, plan, export, evaluate, report or inspect")
    if args.command in ("run", "plan"):
        args.overrides += [word for word in left if not word.startswith("-")]
        left = [word for word in left if word.startswith("-")]
    if left:
        from .components import suggestion
        known = [option for action in parser()._subparsers._group_actions[0].choices[args.command]._actions
                 for option in action.option_strings]
        raise UserError(f"{left[0]}: {args.command} has no such argument{suggestion(left[0], known)}")
    if args.command == "run":
        if args.ranks:
            from . import launch
            if launch.needed(args.ranks):
                return launch.launch(args.ranks, words)
        from . import app
        return app.main(args.config, args.overrides, args.out, args.resume, args.check)
    from . import after
    return getattr(after, args.command)(args)


def main() -> int:
    """The console script."""
    stop.listen(sys.argv[1:])
    from .core.launcher import launched_rank

    try:
        return dispatch(sys.argv[1:])
    except (UserError, RunError) as error:
        if launched_rank() == 0:
            print(f"mpiprop: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, UserError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
