"""Run the command line, and say how it ended: what the user can mend, a full memory, a bug, a stop."""

from __future__ import annotations

import gc
import os
import re
import sys

import typer

from limner.cli.app import app
from limner.errors import UserError
from limner.interrupt import EXIT_CODE, leave_at_the_next, stoppable
from limner.ranks import first_to_say, started

COLLECTION = (50_000, 2, 2)
"""How many objects are made before Python looks among them for garbage, and how often it looks among the older ones.

The libraries' imports and a base's modules are a million objects that all stay: with its own 700, 10, 10 it takes .7 s
of a run's start. Among all objects it looks about as often as before. A training step leaves no tensor to be found so.
"""
STOPPED = "Stopped. What is finished stays; a run goes on with: limner train --resume RUN"


def main() -> None:
    """Run the command line; exit 0 done, 2 the user can mend it, 3 a guard stopped it, 130 the user did, 1 a bug."""
    code = 0
    gc.set_threshold(*COLLECTION)
    try:
        if started().count > 1 and sys.argv[1:2] != ["train"]:
            raise UserError(
                f"limner {' '.join(sys.argv[1:2])}: runs in one process.", "Only train is shared by several."
            )
        with stoppable():
            code = app(standalone_mode=False) or 0
        if code == EXIT_CODE:  # typer returns a Ctrl-C as an exit code
            _tell(STOPPED)
    except UserError as error:
        _tell(str(error))
        code = error.exit_code
    except typer.TyperException as error:  # words that typer cannot parse
        print(f"limner: {_unparsed(error)} See: limner --help", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        _tell(STOPPED)
        code = EXIT_CODE
    except BrokenPipeError:  # `head` and `less` have seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        code = _tell_failure(error)
    if code == EXIT_CODE:
        leave_at_the_next()
    gc.freeze()  # what is left goes with the process: looking through all of it first would take a second
    sys.exit(code)


def _tell(text: str) -> None:
    """Print why all processes stop, in one of them."""
    if first_to_say(text):
        print(text, file=sys.stderr, flush=True)


def _unparsed(error: typer.TyperException) -> str:
    """Return what typer says, and the setting where a flag was tried in its place."""
    said = error.format_message().rstrip(".")
    flag = re.match(r"No such option: --([\w-]+)", said)
    if flag:
        from limner.recipe import did_you_mean

        close = did_you_mean(flag[1].replace("-", "_"))
        said += f". Settings are key=value{f': did you mean {close}=...?' if close else ''}"
    return f"{said}{'' if said.endswith('?') else '.'}"


def _tell_failure(error: Exception) -> int:
    """Say that memory was too small, or that it is a bug and where its traceback is; return the exit code."""
    # torch, which is not imported here, has an error of its own for a GPU, and only words for the machine
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if full or "can't allocate memory" in str(error):
        found = str(error).partition(". ")[0] or "the machine's memory is full"
        print(f"Out of memory: {found}. Set gradient_checkpointing=true, a lower batch (with accumulate), a lower "
              "resolution, or for pictures a lower generation.batch.", file=sys.stderr)  # fmt: skip
        return 2
    import tempfile
    import traceback

    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    with tempfile.NamedTemporaryFile("w", prefix="limner-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"limner {' '.join(sys.argv[1:])}\n\n{''.join(traceback.format_exception(error))}")
    print(f"This is a bug in Limner: {what}. Please report it with {file.name}, which says where.", file=sys.stderr)
    return 1
