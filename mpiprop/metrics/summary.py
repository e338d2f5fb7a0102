"""What an evaluation found, as a table and as JSON, with all that is needed to repeat it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any

from mpiprop import __version__
from mpiprop.config.schema import Run, StageConfig
from mpiprop.priors.vocabulary import Vocabulary

from mpiprop.metrics.measures import Result
from mpiprop.metrics.protocols import BY_NAME, Protocol
from mpiprop.metrics.truth import Likeness

COLUMNS = ("run", "configuration", "seed", "prompt", "similarity", "R-Precision", "nearest prompt")
TRUE_COLUMNS = {"IoU": "{:.3f}", "Chamfer": "{:.4f}", "PSNR": "{:.2f}", "SSIM": "{:.3f}"}
NUMBERS = ("seed", "similarity", "R-Precision", *TRUE_COLUMNS)  # set to the right


@dataclass(frozen=True)
class Subject:
    """What tells one run from another, and how far it has come."""

    run: str  # folder, or file of views
    configuration: str
    seed: int
    window: int
    stage: str  # that its pictures show
    step: int  # of that stage, as many as are done
    steps: int
    finished: bool  # the whole run, or the object


def origin(run: Run, stage: StageConfig, step: int) -> dict[str, Any]:
    """What a Subject says of the run that its pictures come from, by its fields."""
    return {"configuration": run.name, "seed": run.seed, "window": stage.window.size, "stage": stage.name, "step": step,
            "steps": stage.steps}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The measures of several runs and how they came about."""

    protocol: str | None  # None: the pictures in views/ or .views.png as they are
    settings: Protocol | None
    judge: str
    fingerprint: str  # of the judge
    device: str
    seed: int  # of the crops
    prompts_file: str | None
    reference: str | None  # folder
    reference_pictures: int
    fid: float | None
    result: Result
    subjects: tuple[Subject, ...]  # in the order of result.objects
    truths: tuple[Likeness, ...] = ()  # likewise, with --truth

    def to_json(self) -> str:
        """One object; under `objects` one for each run."""
        tree = {"mpiprop": __version__} | asdict(self)
        result, subjects, truths = tree.pop("result"), tree.pop("subjects"), tree.pop("truths")
        scores = result.pop("objects")
        objects = [subject | score | {"unknown_words": self._unknown(score["prompt"])} | ({"truth": like} if like else {})
                   for subject, score, like in zip_longest(subjects, scores, truths)]
        return json.dumps(tree | result | {"objects": objects}, indent=2)

    def __str__(self) -> str:
        """A row for each run, then how the figures came about and what to beware of."""
        result = self.result
        rows = [(subject.run, subject.configuration, str(subject.seed), score.prompt, f"{score.similarity:.4f}",
                 f"{score.r_precision:.1%}", "its own" if score.retrieved == score.prompt else score.retrieved)
                for subject, score in zip(self.subjects, result.objects)]
        total = ("all runs", "", "", "", f"{result.similarity:.4f}", f"{result.r_precision:.1%}",
                 f"its own for {result.r_precision_objects:.1%} of the runs")
        table: list[tuple[str, ...]] = [COLUMNS, *rows, total]
        if self.truths:
            figures = [tuple(TRUE_COLUMNS), *(true_cells([like]) for like in self.truths), true_cells(self.truths)]
            table = [row + more for row, more in zip(table, figures)]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(word.rjust(width) if name in NUMBERS else word.ljust(width)
                           for name, word, width in zip(table[0], row, widths)).rstrip() for row in table]
        lines.insert(-1, "-" * max(map(len, lines)))
        return "\n".join([*lines, *self._origin(), *self._warnings()])

    def _origin(self) -> Iterator[str]:
        settings, result = self.settings, self.result
        how = "from files" if settings is None else (
            f"rendered as in {self.protocol}: {settings.views} azimuths at elevation {settings.elevation_deg:g} degrees, "
            f"{settings.size} x {settings.size}")
        yield (f"{result.images} pictures {how}; {len(result.prompts)} prompts to choose from; judge {self.judge} on "
               f"{self.device}")
        if self.fid is not None:
            crops = f"{settings.crops} crops of each picture (seed {self.seed})" if settings else "the pictures"
            yield f"CLIP-FID {self.fid:.4g}: {crops} against {self.reference_pictures:,} pictures in {self.reference}"

        if self.truths:
            yield ("against the true solid, after the best rotation about the vertical, scale and shift: IoU of volumes, "
                   "Chamfer distance over the longest side, PSNR (dB) and SSIM of views all around on white")

    def _warnings(self) -> Iterator[str]:
        if len(self.result.prompts) == 1:
            yield "R-Precision among one prompt says nothing: give --prompts FILE"
        for subject in self.subjects:
            if not subject.finished:
                yield f"{subject.run}: not finished, at step {subject.step} of {subject.steps} of stage {subject.stage}"
        for prompt in dict.fromkeys(score.prompt for score in self.result.objects):
            if unknown := self._unknown(prompt):
                yield (f"the built-in judge does not know {Vocabulary.builtin().quoted(unknown)}: its figures for \"{prompt}\" "
                       f"mean little; give a real CLIP model (--clip {BY_NAME['dreampropeller'].clip})")
        if self.settings is not None and self.judge != self.settings.clip:
            yield f"not to be compared with the paper's figures, whose judge is {self.settings.clip}"

    def _unknown(self, prompt: str) -> list[str]:
        """Words of a prompt that the judge was never shown, as far as is known."""
        return Vocabulary.builtin().unknown(prompt) if self.judge == "builtin" else []


def true_cells(likes: Sequence[Likeness]) -> tuple[str, ...]:
    """The cells of TRUE_COLUMNS: means over the objects that have the figure, a dash where none has it."""
    rows = [(like.iou, like.chamfer, like.psnr_db, like.ssim) for like in likes]
    there = [[value for row in rows if (value := row[i]) is not None] for i in range(len(TRUE_COLUMNS))]
    return tuple(form.format(fmean(values)) if values else "-" for values, form in zip(there, TRUE_COLUMNS.values()))
