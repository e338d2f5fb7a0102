"""What a run starts from, a prompt, a picture or another run: whether it is given and there, told before torch is loaded."""

from pathlib import Path

from mpiprop.config.components import needs
from mpiprop.config.schema import Run
from mpiprop.core.errors import UserError
from mpiprop.run.folders import GENERATOR, place


def check(name: str, run: Run) -> None:
    """Raises UserError where configuration `name` lacks its prompt or picture, is given one that it does not read, or where
    a file that it names is not there."""
    picture = any(needs(node, "reference") for node in run.nodes)
    if run.image is not None and not picture:
        raise UserError(f"image={run.image}: {name} makes objects from a prompt alone; leave image out")
    if run.image is None and picture:
        raise UserError(f"{name} makes objects from a picture: give image=FILE")
    if run.image is not None and not Path(run.image).exists():
        raise UserError(f"image={run.image}: no such file")
    if run.from_ and not any((place(run.from_) / name).exists() for name in ("window.h5", GENERATOR)):
        raise UserError(f"from={run.from_}: no run folder with a window.h5, and no exported generator")
    if not all(prompt.strip() for prompt in run.prompts) and run.reads_prompt:
        raise UserError('nothing to make: give prompt="..."')
