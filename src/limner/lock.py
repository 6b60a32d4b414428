"""One process at a time on one run folder; the lock dies with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from limner.errors import UserError
from limner.files import writing

try:
    import fcntl
except ImportError:  # Windows: there is no such lock, and two processes on one run are not told apart
    fcntl = None

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder while this block runs.

    Raises:
        UserError: another process is at it.
    """
    path = folder / LOCK
    descriptor = _lock(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Open and lock the file, write this process's number into it, and return its descriptor."""
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    if fcntl:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode() or "another one"
            os.close(descriptor)
            raise UserError(f"{path.parent}: is being trained by process {holder}.",
                            "Wait for it to end, or name another folder with --run.") from None  # fmt: skip
        except OSError:  # a disk that knows no locks
            return descriptor
    if not _is_at(descriptor, path):  # its holder has just ended and taken the file along
        os.close(descriptor)
        return _lock(path)
    with suppress(OSError):  # the number is only for the message
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
