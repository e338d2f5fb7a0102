"""A trained generator without its training: of a run, of the files that `export` writes, or the built-in one.

An exported generator is a folder of config.yaml, the configuration of its stage, and generator.safetensors: its numbers
by their names in theta ("geometry.encoding.table") in half precision, and as metadata "format", "mpiprop" (version) and
"step".
"""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from mpiprop import __version__
from mpiprop.config import loader
from mpiprop.config.components import build, find, takes
from mpiprop.config.schema import Run, StageConfig
from mpiprop.core.errors import RunError, UserError
from mpiprop.core.streams import Streams
from mpiprop.core.theta import Theta
from mpiprop.io.files import atomic, made
from mpiprop.objective.scene import Scene
from mpiprop.priors.base import Prior
from mpiprop.priors.vocabulary import unknown_words
from mpiprop.run import checkpoint, folders
from mpiprop.shapes.generators.base import Generator, Text

FORMAT = "1"  # of exported files
PARTS = ("geometry.", "material.", "background.")  # of theta, what objects are made of


@dataclass(frozen=True)
class Trained:
    """The numbers of a generator at some step of its training, by their names in theta, and its configuration."""

    run: Run
    stage: StageConfig
    step: int
    numbers: dict[str, Tensor]

    @classmethod
    def read(cls, source: str) -> "Trained":
        """Reads "builtin", the folder of a run, or one that `write` has written. Raises UserError where there is none,
        or none whose shape is a generator."""
        folder = folders.place(source)
        run = folders.configured(folder)
        return cls._of_files(run, folder) if (folder / folders.GENERATOR).is_file() else cls._of_run(run, folder)

    @classmethod
    def _of_run(cls, run: Run, folder: Path) -> "Trained":
        if not (folder / "window.h5").is_file():
            raise UserError(f"{folder}: has no checkpoint (window.h5) yet; wait for its first")
        found = checkpoint.load(folder / "window.h5")
        stage, theta = run.stages[run.index(found.stage)], found.window.x.theta
        _check(stage, folder)
        numbers = {entry.name: theta.flat[entry.span].view(entry.shape) for entry in theta.layout.entries
                   if entry.name.startswith(PARTS)}
        return cls(run, stage, found.window.x.tau, numbers)

    @classmethod
    def _of_files(cls, run: Run, folder: Path) -> "Trained":
        from safetensors import SafetensorError, safe_open

        path, stage = folder / folders.GENERATOR, run.stages[-1]
        _check(stage, folder)
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                numbers = {name: file.get_tensor(name).float() for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged or not a generator ({str(error).splitlines()[0]})") from None
        if about.get("format") != FORMAT:
            raise UserError(f"{path}: a generator of format {about.get('format')}; this mpiprop {__version__} reads "
                            f"{FORMAT}")
        return cls(run, stage, int(about["step"]), numbers)

    def write(self, folder: Path) -> None:
        """Writes config.yaml and the numbers in half precision into `folder`, which is made."""
        from safetensors.torch import save

        half = {name: numbers.half().contiguous() for name, numbers in self.numbers.items()}
        if bad := [name for name, numbers in half.items() if not numbers.isfinite().all()]:
            raise RunError(f"{bad[0]}: not finite in half precision; export an earlier checkpoint")
        made(folder)
        with atomic(folder / "config.yaml") as part:
            part.write_text(self.config)
        with atomic(folder / folders.GENERATOR) as part:
            # save_file would make a file that no other user can read
            part.write_bytes(save(half, {"format": FORMAT, "mpiprop": __version__, "step": str(self.step)}))

    @property
    def config(self) -> str:
        """The configuration of its stage, without the prompts."""
        return loader.resolved(replace(self.run, prompt="", prompts_=None, from_=None, stages=(self.stage,)))

    @cached_property
    def digest(self) -> str:
        """Identifies the generator and the step of its training."""
        digest = sha256(self.config.encode())
        for name, numbers in sorted(self.numbers.items()):
            digest.update(name.encode())
            digest.update(numbers.contiguous().numpy().data)
        return digest.hexdigest()[:16]


class Maker:
    """Makes the scenes of prompts by a trained generator."""

    def __init__(self, trained: Trained, device: torch.device | str = "cpu") -> None:
        stage = trained.stage
        init = Streams(trained.run.seed, 0).of(f"{stage.name}/init")
        self.run, self.device = trained.run, torch.device(device)
        self.scene = Scene(build(stage.shape, init), build(stage.material), build(stage.background, init),
                           build(stage.render), device)
        layout = self.scene.layout
        if {entry.name: tuple(entry.shape) for entry in layout.entries} != {
                name: tuple(numbers.shape) for name, numbers in trained.numbers.items()}:
            raise UserError(f"{stage.shape.path}: its numbers are laid out otherwise than the configuration says")
        flat = torch.cat([trained.numbers[entry.name].reshape(-1) for entry in layout.entries])
        self.tau, self.step = stage.steps, trained.step
        self.theta = Theta(flat.to(self.device), layout)
        self.scene.load(self.theta, self.tau)
        self.views = build(stage.terms[0].views)
        self.guidance = next((term.guidance for term in stage.terms if takes(term.guidance, "prompts")), None)

    @cached_property
    def prior(self) -> Prior:
        """The diffusion model whose encoder reads the prompts."""
        if self.guidance is None:
            raise UserError("no guidance of the generator's stage reads a prompt")
        prior = build(self.guidance.part("prior"), self.device)
        if "text" not in prior.reads:
            raise UserError(f"{self.guidance.path}.prior: reads no text, so there is nothing to generate from")
        return prior

    def check(self, prompts: list[str]) -> list[str]:
        """Returns notes about words that the prior does not know, a line each. Raises UserError for a prompt that names
        nothing that it knows, and where its files are not to be had."""
        known, model = self.prior.vocabulary, self.guidance.part("prior").title
        return [*unknown_words(known, model, prompts, prompts, self.run.unknown_words == "warn"),
                *self.prior.verify(prompts)]

    def text(self, prompt: str) -> Text:
        """Encodes a prompt."""
        tokens = self.prior.embed([prompt])[0].to(self.device)
        return Text(tokens[self.prior.ends([prompt])[0]], tokens)

    def object(self, text: Text) -> Scene:
        """Returns the scene of a text's object, as evaluation sees it."""
        self.scene.texts = lambda prompt: text
        with torch.no_grad():
            return self.scene.object()


def beginning(run: Run, device: torch.device | str = "cpu") -> Maker | None:
    """The generator that a run begins with. None where it begins otherwise."""
    if run.from_ is None:
        return None
    folder = folders.place(run.from_)
    trained = (folder / "config.yaml").is_file() and any(map(_generates, folders.configured(folder).stages))
    if trained or (folder / folders.GENERATOR).is_file():
        return Maker(Trained.read(run.from_), device)
    return None


def _generates(stage: StageConfig) -> bool:
    return issubclass(find(stage.shape.use).load(), Generator)


def _check(stage: StageConfig, folder: Path) -> None:
    """Raises UserError where the shape of a stage is no generator."""
    if not _generates(stage):
        raise UserError(f"{folder}: its shape is a {stage.shape.use}, which makes one object and no others; for that "
                        f"one: mpiprop export {folder}")
