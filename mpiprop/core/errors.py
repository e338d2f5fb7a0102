"""The ways a run ends other than well, and the exit code of each (one line for the user, never a bare traceback)."""

from collections.abc import Collection
from difflib import get_close_matches

DONE, FAILED, MISTAKE, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130


class UserError(Exception):
    """A mistake of the user (key, file, argument): says what is wrong, where, and the nearest valid choice. Exit 2."""


def positive(**numbers: float) -> None:
    """Raises UserError for a number, by the name of its key, that is not above 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise UserError(f"{name}: needs more than 0, got {number:g}")


class RunError(Exception):
    """A run that cannot go on (non-finite gradient, failed rank, full disk): says what, where, what to do. Exit 1."""


class Lost(RunError):
    """A rank that died or hangs: the same run may go better from its checkpoint. Exit 75."""


class Preempted(Exception):
    """A signal or a `stop` file asked the run to write its checkpoint and leave. Exit 75."""


def exit_code(error: Exception) -> int:
    """The program's exit code where `error` ends it."""
    if isinstance(error, (Lost, Preempted)):
        return PREEMPTED
    return MISTAKE if isinstance(error, UserError) else FAILED


def coded(code: int, text: str) -> Exception:
    """The error with this exit code, as another rank tells it."""
    return {MISTAKE: UserError, PREEMPTED: Lost}.get(code, RunError)(text)


def suggestion(word: str, words: Collection[str]) -> str:
    """The end of a message about an unknown word: the nearest valid one, or all of them."""
    near = get_close_matches(str(word), words, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(words) or 'none'}"
