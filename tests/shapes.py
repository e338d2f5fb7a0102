"""What checks the shapes of tensors while tests run: every annotation by jaxtyping in the rooms of `CHECKED`.

Other types are left to mypy. Ranks that tests start with mpirun are not checked.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

CHECKED = ("conditioning", "estimators", "guidance", "priors", "render", "shapes", "views")


def check() -> None:
    """Check the modules that are imported from now on."""
    install_import_hook([f"mpiprop.{room}" for room in CHECKED], f"{__name__}.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which raises where an argument or the result has another shape than its annotation says."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if shaped(hint)}
    return beartype(function)


def shaped(hint: Any) -> bool:
    """Whether an annotation, or a part of it, says a shape."""
    return isinstance(hint, type) and issubclass(hint, AbstractArray) or any(map(shaped, get_args(hint)))
