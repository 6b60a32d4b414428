"""The ways in which a verb can end early, each with its exit code."""

OR_WHAT_FITS = ", or take what fits with --allow-partial (generate, merge, export)"
"""The end of a hint about a file of which some fits."""


class UserError(Exception):
    """Something that the user can mend: one line that says where, what was found, what is allowed, what to do.

    Exit code 2, no traceback, nothing half-written.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        gap = "" if message.endswith("\n") else " "  # a message that lists things ends its last line itself
        super().__init__(f"{message}{gap}{hint}".strip())


class Unwritable(UserError):
    """A file that the disk did not take: it is full, read-only or broken. Exit code 2."""


class Guarded(UserError):
    """A guard stopped the run (loss not finite, weights destroyed); the last good checkpoint is kept. Exit code 3."""

    exit_code = 3


class Interrupted(UserError):
    """The user stopped the run; a checkpoint is saved. Exit code 130."""

    exit_code = 130
