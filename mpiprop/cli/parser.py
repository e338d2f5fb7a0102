"""The arguments of each command, and its help."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mpiprop.core.errors import UserError, suggestion
from mpiprop.io import FILMS, MESHES
from mpiprop.metrics import PROTOCOLS
from mpiprop.planning.constants import BANDWIDTH, FIXED


def positive(kind: type) -> Callable[[str], float]:
    """An argument type: numbers above 0."""
    def positive(word: str) -> float:
        if not 0 < (number := kind(word)) < float("inf"):
            raise ValueError
        return number
    return positive


def share(word: str) -> float:
    """An argument type: numbers from 0 to 1."""
    if not 0 <= (number := float(word)) <= 1:
        raise ValueError
    return number


def path(word: str) -> Path:
    """An argument type: files and folders. An empty word, such as that of an unset shell variable, is refused: it would be the
    current folder."""
    if not word:
        raise argparse.ArgumentTypeError("needs the name of a file or folder, got an empty word")
    return Path(word)


def formats(word: str) -> tuple[str, ...]:
    """An argument type: formats of files, with commas between."""
    found = tuple(dict.fromkeys(word.split(",")))
    if unknown := set(found) - {*MESHES, *FILMS}:
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join((*MESHES, *FILMS))}")
    return found


class Parser(argparse.ArgumentParser):
    """The parser of one command. A mistake raises UserError: one line with the nearest option."""

    def __init__(self, name: str, text: str, examples: Sequence[str] = ()) -> None:
        self.options: list[str] = []
        epilog = "\n  ".join(["examples:", *examples]) if examples else None
        super().__init__(prog=f"mpiprop {name}", description=text, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As in argparse; the names of options are kept for messages."""
        self.options += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **options)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse `words`, options and positional arguments in any order. Raises UserError for a mistake."""
        args, left = self.parse_known_intermixed_args(words)
        for word in left:
            if "=" in word and word.split("=")[0] not in self.options and hasattr(args, "overrides"):
                raise UserError(f"{word}: keys have no dashes: {word.lstrip('-')} (see {self.prog} --help)")
            raise UserError(f"{word}: no such option of {self.prog}{suggestion(word.split('=')[0], self.options)}")
        return args

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parsers() -> dict[str, Parser]:
    """The parser of each command by its name, in the order in which users need them."""
    found: dict[str, Parser] = {}

    def command(name: str, text: str, *examples: str) -> Parser:
        found[name] = Parser(name, text, examples)
        return found[name]

    run = command("run", "Make an object from a prompt or a picture.")  # its help: manual.py
    run.add_argument("config", metavar="CONFIG", nargs="?")
    run.add_argument("--out", type=path, metavar="DIR")
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
    plan.add_argument("--measured", type=path, metavar="RUN", help="run folder that tells what things take")
    plan.add_argument("--measured-ranks", type=positive(int), metavar="M", help="ranks that RUN had (default: what it "
                      "says, else 1 for window 1 and 1 + window x shards for others)")
    plan.add_argument("--evaluate", type=positive(float), metavar="SECONDS", help="of one evaluation of a whole batch on one "
                      "device (default: RUN's)")
    plan.add_argument("--bandwidth", type=positive(float), metavar="GB/s", help="of a rank's link (default: RUN's, "
                      f"else {BANDWIDTH})")
    plan.add_argument("--rollout", type=positive(float), metavar="SECONDS", help="of an optimiser step on rank 0 (default: "
                      "RUN's, else timed on this CPU)")
    plan.add_argument("--fixed", type=share, default=FIXED, metavar="SHARE", help="of an evaluation that does not depend on "
                      f"the number of views (default: {FIXED})")
    plan.add_argument("--json", action="store_true", help="machine-readable")
    plan.add_argument("overrides", metavar="key=value", nargs="*", help="as for run")

    report = command("report", "One self-contained HTML page of one run, or comparing several.")
    report.add_argument("runs", type=path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=path, metavar="FILE.html", help="default: report.html in the first RUN")

    view = command("view", "The object, the cameras and the previews of a run in the browser, while it runs or after.",
                   "mpiprop view runs/demo-a-green-mushroom-0               then open the address that it says")
    view.add_argument("run", type=path, metavar="RUN", help="run folder")
    view.add_argument("--port", type=positive(int), default=8080, metavar="N", help="of the page (default: 8080, or the next "
                      "one that is free)")
    view.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen at; 0.0.0.0: all of this machine "
                      "(default: 127.0.0.1, this machine alone)")

    export = command("export", "A file from a finished or unfinished run.",
                     "mpiprop export runs/demo-a-green-mushroom-0                          mesh.glb in that folder",
                     "mpiprop export runs/demo-a-green-mushroom-0 --out chair.obj          also chair.mtl and chair.png",
                     "mpiprop export runs/demo-a-green-mushroom-0 --format mp4 --resolution 512")
    export.add_argument("run", type=path, metavar="RUN", help="run folder")
    export.add_argument("--format", choices=(*MESHES, *FILMS, "generator"), help="glb, obj: the mesh, with a texture if "
                        "mesh.texture asks for one (obj: in a .png, by a .mtl beside it); ply: the mesh with colours at its "
                        "vertices, or the Gaussians of a run that has them; gif, mp4 (needs ffmpeg): the turntable; "
                        "generator: a folder for `generate`, a small part of a run whose shape is one (default: as --out "
                        "ends, else glb)")
    export.add_argument("--out", type=path, metavar="FILE", help="default: mesh.FORMAT, cloud.ply, turntable.FORMAT or "
                        "generator in RUN")
    export.add_argument("--resolution", type=positive(int), metavar="R", help="cells a side of a mesh (default: the run's "
                        "mesh.resolution), or pixels a side of a film (default: its turntable.size)")

    generate = command("generate", "Objects of many prompts in seconds each, by a trained generator.",
                       'mpiprop generate builtin "a pink chair" "a blue car"           .glb and .gif of each in runs/generated',
                       'mpiprop generate runs/many "a red mug" "a red car" --interpolate    also a film between them',
                       "mpirun -n 8 python -m mpiprop generate runs/many --prompts prompts.txt --out objects")
    generate.add_argument("generator", metavar="RUN", help="run folder whose shape is a generator, finished or not; a "
                          "folder that `export --format generator` has written; or builtin")
    generate.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to make an object of")
    generate.add_argument("--prompts", type=path, metavar="FILE", dest="listed", help="more prompts, one a line or JSON")
    generate.add_argument("--format", type=formats, default=("glb", "gif"), metavar="FORMAT,...", help="files of each "
                          "object: glb, obj, ply: the mesh; gif, mp4 (needs ffmpeg): its turntable (default: glb,gif)")
    generate.add_argument("--interpolate", action="store_true", help="also a film from each prompt to the next, in the "
                          "film formats of --format")
    generate.add_argument("--resolution", type=positive(int), metavar="R", help="cells a side of a mesh (default: the "
                          "run's mesh.resolution)")
    generate.add_argument("--out", type=path, metavar="DIR", help="folder for the files; what is whole there already is "
                          "kept (default: RUN/generated, or runs/generated for builtin)")
    generate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: "
                          "auto, a GPU if there is one)")

    evaluate = command("evaluate", "CLIP similarity, CLIP R-Precision and CLIP-FID of runs: of the pictures in views/, or as a "
                       "paper measures.",
                       "mpiprop evaluate runs/demo-*                                  by the built-in judge",
                       "mpiprop evaluate runs/dreamfusion-* --protocol dreampropeller --prompts prompts.txt --reference photos")
    evaluate.add_argument("runs", type=path, nargs="+", metavar="RUN", help="run folder, or one that `generate` has filled")
    evaluate.add_argument("--protocol", choices=PROTOCOLS, help="render the views of this paper from the newest checkpoint and "
                          "judge them as it does (default: the pictures in views/)")
    evaluate.add_argument("--prompts", type=path, metavar="FILE", help="prompts to retrieve from, one a line or JSON "
                          "(default: all that the built-in judge knows; with another judge the runs' own)")
    evaluate.add_argument("--clip", metavar="ID_OR_FOLDER", help="any CLIP model, or builtin (default: the protocol's; builtin "
                          "without one)")
    evaluate.add_argument("--reference", type=path, metavar="FOLDER", help="pictures that CLIP-FID compares with; their "
                          "statistics are kept in ~/.cache/mpiprop")
    evaluate.add_argument("--views", type=positive(int), metavar="N", help="azimuths instead of the protocol's (120)")
    evaluate.add_argument("--size", type=positive(int), metavar="PIXELS", help="a side of a render, instead of the protocol's "
                          "(512)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the protocol's random crops (default: 0)")
    evaluate.add_argument("--truth", action="store_true", help="compare each object with the true solid of its prompt, too, "
                          "which has to be one of the corpus")
    evaluate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to render and to judge "
                          "(default: auto, a GPU if there is one)")
    evaluate.add_argument("--json", action="store_true", help="machine-readable, with everything that repeats it")

    inspect = command("inspect", "What a checkpoint holds, and whether it is whole.",
                      "mpiprop inspect runs/demo-a-green-mushroom-0")
    inspect.add_argument("run", type=path, metavar="RUN", help="run folder, or its window.h5")

    command("schema", "The JSON schema of configurations, with which editors complete YAML.",
            "mpiprop schema > mpiprop.schema.json")
    return found
