"""mpiprop: text or image to 3D by score distillation, many optimiser steps at once, over MPI."""

import sys

from . import stop

if __name__ == "__main__":
    stop.listen(sys.argv[1:])  # before the slow imports

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__
from .core.errors import DONE, FAILED, MISTAKE, RunError, UserError, suggestion
from .core.launcher import launched, launched_rank
from .export import FILMS, MESHES
from .metrics import PROTOCOLS

HELP = ("--help", "-h")
HEAD = f"""{__doc__.strip()}

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
    """One line for a mistake, with the nearest option."""

    def __init__(self, name: str, text: str, examples: Sequence[str] = ()) -> None:
        self.options: list[str] = []
        epilog = "\n  ".join(["examples:", *examples]) if examples else None
        super().__init__(prog=f"mpiprop {name}", description=text, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_argument(self, *names: str, **options: object) -> argparse.Action:
        """As argparse has it; options are kept for messages."""
        self.options += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **options)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments in `words`, options and others in any order. Raises UserError for a mistake."""
        args, left = self.parse_known_intermixed_args(words)
        for word in left:
            if "=" in word and word.split("=")[0] not in self.options and hasattr(args, "overrides"):
                raise UserError(f"{word}: keys have no dashes: {word.lstrip('-')} (see {self.prog} --help)")
            raise UserError(f"{word}: no such option of {self.prog}{suggestion(word.split('=')[0], self.options)}")
        return args

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def parsers() -> dict[str, Parser]:
    """The parser of each command, in the order of a user's day."""
    found: dict[str, Parser] = {}

    def command(name: str, text: str, *examples: str) -> Parser:
        found[name] = Parser(name, text, examples)
        return found[name]

    run = command("run", "Make an object from a prompt or a picture.")  # its help: manual.py
    run.add_argument("config", metavar="CONFIG", nargs="?")
    run.add_argument("--out", type=Path, metavar="DIR")
    run.add_argument("--resume", action="store_true")
    run.add_argument("--check", action="store_true")
    run.add_argument("--ranks", type=positive(int), metavar="N")
    run.add_argument("overrides", metavar="key=value", nargs="*")

    plan = command("plan", "Predicted speed-up, time, memory and traffic of each window and number of shards on N ranks.",
                   "mpiprop plan dreamfusion-sd --ranks 8                  before anything was measured",
                   "mpiprop run dreamfusion-sd stages.0.steps=50 --out runs/measure",
                   "mpiprop plan dreamfusion-sd --ranks 8 --measured runs/measure")
    plan.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, or the name of one (see mpiprop run --help)")
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

    report = command("report", "One self-contained HTML page of one run, or comparing several.")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, metavar="FILE.html", help="default: report.html in the first RUN")

    export = command("export", "A file from a finished or unfinished run.",
                     "mpiprop export runs/demo-a-green-mushroom-0                          mesh.glb in that folder",
                     "mpiprop export runs/demo-a-green-mushroom-0 --out chair.obj          also chair.mtl and chair.png",
                     "mpiprop export runs/demo-a-green-mushroom-0 --format mp4 --resolution 512")
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--format", choices=MESHES + FILMS, help="glb, obj: the mesh, with a texture if mesh.texture asks for "
                        "one (obj: in a .png, by a .mtl beside it); ply: the mesh with colours at its vertices, or the "
                        "Gaussians of a run that has them; gif, mp4 (needs ffmpeg): the turntable (default: as --out ends, "
                        "else glb)")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: mesh.FORMAT, cloud.ply or turntable.FORMAT in RUN")
    export.add_argument("--resolution", type=positive(int), metavar="R", help="cells a side of a mesh (default: the run's "
                        "mesh.resolution), or pixels a side of a film (default: its turntable.size)")

    evaluate = command("evaluate", "CLIP similarity, CLIP R-Precision and CLIP-FID of runs: of the pictures in views/, or as a "
                       "paper measures.",
                       "mpiprop evaluate runs/demo-*                                  by the built-in judge",
                       "mpiprop evaluate runs/dreamfusion-* --protocol dreampropeller --prompts prompts.txt --reference photos")
    evaluate.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    evaluate.add_argument("--protocol", choices=PROTOCOLS, help="render the views of this paper from the newest checkpoint and "
                          "judge them as it does (default: the pictures in views/)")
    evaluate.add_argument("--prompts", type=Path, metavar="FILE", help="prompts to retrieve from, one a line or JSON "
                          "(default: all that the built-in judge knows; with another judge the runs' own)")
    evaluate.add_argument("--clip", metavar="ID_OR_FOLDER", help="any CLIP model, or builtin (default: the protocol's; builtin "
                          "without one)")
    evaluate.add_argument("--reference", type=Path, metavar="FOLDER", help="pictures that CLIP-FID compares with; their "
                          "statistics are kept in ~/.cache/mpiprop")
    evaluate.add_argument("--views", type=positive(int), metavar="N", help="azimuths instead of the protocol's (120)")
    evaluate.add_argument("--size", type=positive(int), metavar="PIXELS", help="a side of a render, instead of the protocol's "
                          "(512)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the protocol's random crops (default: 0)")
    evaluate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to render and to judge "
                          "(default: auto, a GPU if there is one)")
    evaluate.add_argument("--json", action="store_true", help="machine-readable, with everything that repeats it")

    inspect = command("inspect", "What a checkpoint holds, and whether it is whole.",
                      "mpiprop inspect runs/demo-a-green-mushroom-0")
    inspect.add_argument("run", type=Path, metavar="RUN", help="run folder, or its window.h5")
    return found


def dispatch(words: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
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
        print(f"mpiprop {__version__}")
        return DONE
    if name == "run" and set(HELP) & set(rest):
        from . import manual
        print(manual.answer([word for word in rest if word not in HELP]))
        return DONE
    if name not in known:
        from . import config
        raise UserError(f"{name}: no such command; " + (f"for that configuration: mpiprop run {name}" if name in config.names()
                        else suggestion(name, known).removeprefix("; ")))
    args = known[name].read(rest)
    if name in ("run", "plan"):
        _complete(args, name)
    if name == "run":
        if args.ranks:
            from . import launch
            if launch.needed(args.ranks):
                return launch.launch(args.ranks, words)
        from . import app
        return app.main(args.config, args.overrides, args.out, args.resume, args.check)
    from . import after
    return getattr(after, name)(args)


def _complete(args: argparse.Namespace, name: str) -> None:
    """Raises UserError where the configuration is missing, or has a mistake that can be told before torch is loaded (in a
    process alone: ranks tell it together)."""
    from . import config

    if args.config is None or "=" in args.config and not Path(args.config).exists():
        raise UserError(f"CONFIG is missing: mpiprop {name} CONFIG ..., a YAML file or one of {', '.join(config.names())}")
    if not launched():
        config.load(args.config, args.overrides)


def main() -> int:
    """The console script."""
    stop.listen(sys.argv[1:])
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


if __name__ == "__main__":
    sys.exit(main())
