"""The ways a run ends other than well, and the exit code of each (one line for the user, never a bare traceback)."""

DONE, FAILED, MISTAKE, PREEMPTED = 0, 1, 2, 75


class UserError(Exception):
    """A mistake of the user (key, file, argument): says what is wrong, where, and the nearest valid choice. Exit 2."""


class RunError(Exception):
    """A run that cannot go on (non-finite gradient, failed rank, full disk): says what, where, what to do. Exit 1."""


class Preempted(Exception):
    """A signal or a `stop` file asked the run to write its checkpoint and leave. Exit 75."""
