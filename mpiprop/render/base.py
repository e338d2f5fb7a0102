"""What every renderer is: a callable that turns a shape and views into an image.

Letters: B views, H x W pixels, S points that are shaded.
"""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.shapes.base import Shape
from mpiprop.shapes.clouds.base import Cloud
from mpiprop.shapes.fields.base import Field
from mpiprop.shapes.generators.base import Generator
from mpiprop.shapes.surfaces.base import Surface
from mpiprop.views.cameras import Image, Views

KINDS: dict[type[Shape], tuple[str, str]] = {  # what each kind of shape is called, and the renderer that draws it
    Field: ("fields", "Volume"), Surface: ("surfaces", "Mesh"), Cloud: ("clouds of Gaussians", "Splat"),
    Generator: ("fields", "Volume")}

Shade = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""Colours [S, 3] of features [S, 3] at positions [S, 3] with normals [S, 3], lit from [S, 3]."""
Background = Callable[[Tensor], Tensor]
"""Colours [B, H, W, 3] in unit directions [B, H, W, 3]."""
NORMALS, COSTLY = frozenset({"normals"}), frozenset({"normals", "slope"})  # of LACKING; what takes time to make


class Renderer:
    """The base class of renderers."""

    draws: type[Shape]  # the kind of shape
    makes: frozenset[str] = frozenset()  # what its images have beside the shape's own (guidance.regularizers.LACKING)

    def check(self, shape: Shape) -> None:
        """Raises UserError for a shape of another kind."""
        if not isinstance(shape, self.draws) and not (isinstance(shape, Generator) and self.draws is Field):
            others = [renderer for kind, (_, renderer) in KINDS.items() if isinstance(shape, kind)]
            raise UserError(f"{type(self).__name__} draws {KINDS[self.draws][0]}, and a {type(shape).__name__} is none: use "
                            f"{others[0] if others else 'a shape of that kind'}")

    def __call__(self, shape: Any, shade: Shade, background: Background, views: Views, rng: Streams | None = None,
                 needs: Collection[str] = NORMALS) -> Image:
        """Returns the image of a shape before a background, differentiable in all parameters.

        rng: random streams of the step; None: evaluation, without any draw
        needs: those of COSTLY that the image must have; only asked for where the shape has normals
        """
        raise NotImplementedError
