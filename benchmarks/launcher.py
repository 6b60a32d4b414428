"""Limner's own command line in a process forked from a warm one, disturbed where it touches the disk.

Nothing in the package knows of this: the functions of the standard library and of safetensors that write files are
wrapped in the child, and then `limner.cli.main` runs as it always does.
"""

from __future__ import annotations

import errno
import functools
import gc
import importlib
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.schedulers.scheduling_ddim",
    "limner.run", "limner.cli", "limner.evaluate.evaluate", "limner.report.report", "limner.result", "peft", "psutil",
    "scipy.stats", "transformers.models.clip.modeling_clip",
)  # fmt: skip
"""What a run would import: once, before it is forked."""
PLACES = {
    "trial": r"/\.trial/", "result": r"/run/(\.?adapter|\.?model|embeddings)", "checkpoint": r"/checkpoints/",
    "class pictures": r"/class[-_]pictures/", "previews": r"/previews/", "pictures": r"/run/(pictures|held_out)/",
    "images": r"/(images|base-pictures)/", "cache": r"/cache/", "log": r"/log\.jsonl", "scores": r"/\.?scores",
    "page": r"/\.?report", "about": r"/run/",
}  # fmt: skip
"""What a file is for, by its path; the first that fits."""
KILLS = ("kill before", "kill within", "kill after")
ERRORS = {"no space": errno.ENOSPC, "input/output error": errno.EIO}
BEFELL = "(here)"
FAULTS = (*ERRORS, "short write", "torn rename")


@dataclass(frozen=True)
class Disturbance:
    """What happens to a process: at the `nth` operation on files of a `place`, or at a moment after its start."""

    action: str
    """One of KILLS or FAULTS."""
    place: str = ""
    """One of PLACES; empty for a kill by the clock."""
    nth: int = 0
    lasts: int = 1
    """How many operations in a row a fault befalls."""
    after_s: float = 0.0


@dataclass
class Ended:
    """How a process ended."""

    code: int
    """Its exit code; -9 when it was killed."""
    said: str
    phase: str
    """The last one that had begun."""
    operations: list[str]
    """The place of each operation on files."""
    befell: bool
    """True when a fault befell one of them."""
    seconds: float


def warm_up() -> None:
    """Import what a run needs; nothing is computed, so that no thread is there when the process is forked."""
    from limner.families.load import silence

    silence()  # first, as in a run
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # a forked process looks through what it makes itself


class Running:
    """`limner WORDS` in a forked process; what it says and does is written down in `scratch`, whose files are ours."""

    def __init__(
        self, words: Sequence[str], scratch: Path, *, cache: Path, disturbance: Disturbance | None = None
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.said, self.phase, self.operations = (scratch / name for name in ("said", "phase", "operations"))
        for file in (self.said, self.phase, self.operations):
            file.write_text("")
        self.begun, self.disturbance, self.status = time.perf_counter(), disturbance, None
        self.process = os.fork()
        if self.process == 0:
            _be_limner(words, scratch, cache, disturbance)

    def has_ended(self) -> bool:
        """Look after it: tell whether it has ended, and kill it when its time has come."""
        if self.status is None:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            self.status = status if ended else None
        after_s = self.disturbance.after_s if self.disturbance else 0
        if self.status is None and after_s and time.perf_counter() - self.begun > after_s:
            os.kill(self.process, signal.SIGKILL)
        return self.status is not None

    def phases(self) -> list[str]:
        """Return the phases that have begun, in order."""
        return self.phase.read_text().splitlines()

    def wait(self) -> Ended:
        """Return how it ended, once it has."""
        while not self.has_ended():
            time.sleep(0.01)
        assert self.status is not None
        rows = self.operations.read_text().splitlines()
        return Ended(os.waitstatus_to_exitcode(self.status), self.said.read_text(errors="replace"),
                     (self.phases() or [""])[-1], [row for row in rows if row != BEFELL], BEFELL in rows,
                     time.perf_counter() - self.begun)  # fmt: skip


def _be_limner(words: Sequence[str], scratch: Path, cache: Path, disturbance: Disturbance | None) -> NoReturn:
    """Be the command line, with what it says, its phases and its operations on files written down."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        said = os.open(scratch / "said", os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ["LIMNER_CACHE"] = str(cache)
        sys.argv = ["limner", *words]
        _tell_phases(os.open(scratch / "phase", os.O_WRONLY | os.O_APPEND))
        Disturbed(os.open(scratch / "operations", os.O_WRONLY | os.O_APPEND), disturbance).wrap()
        from limner.cli import main

        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell_phases(file: int) -> None:
    from limner.terminal import Lines

    begin = Lines.begin

    def telling(self: Lines, phase: str) -> None:
        os.write(file, f"{phase}\n".encode())
        begin(self, phase)

    Lines.begin = telling


class Disturbed:
    """The functions that write files, wrapped: each call is written down, and one of them goes wrong."""

    def __init__(self, told: int, disturbance: Disturbance | None) -> None:
        self.told, self.disturbance, self.seen = told, disturbance, 0
        self.fsync, self.replace = os.fsync, os.replace

    def wrap(self) -> None:
        """Put the wrapped functions in their places."""
        os.fsync, os.replace = self.disturbed_fsync, self.disturbed_replace
        for name in ("limner.export.tensors", "limner.train.checkpoint"):
            module: Any = importlib.import_module(name)
            module.save_file = functools.partial(self.disturbed_save, module.save_file)
        plain_open, disturbed = io.open, self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                return disturbed.disturbed_write(super().write, bytes(data), str(self.name))

        def disturbed_open(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
            if mode not in ("wb", "ab+", "r+b") or not place_of(str(file)):
                return plain_open(file, mode, buffering, *more, **named)
            raw = Raw(file, mode.replace("b", ""))
            return raw if buffering == 0 else (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)

        io.open = disturbed_open

    def disturbed_fsync(self, descriptor: int) -> None:
        """Have the disk hold a file, or not."""
        with _acting(self._next(os.readlink(f"/proc/self/fd/{descriptor}"))):
            self.fsync(descriptor)

    def disturbed_replace(self, source: Any, target: Any) -> None:
        """Rename; a torn one happens, and is told as an error."""
        action = self._next(str(target), renames=True)
        with _acting(action):
            self.replace(source, target)
        if action == "torn rename":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def disturbed_save(self, save: Callable[..., None], tensors: Any, path: Any, *more: Any) -> None:
        """Write a safetensors file; half of it is there when something happens within."""
        from safetensors import SafetensorError

        action = self._next(str(path))
        save(tensors, path, *more)
        if action in ("kill within", "short write"):
            os.truncate(path, os.path.getsize(path) // 2)
        try:
            with _acting("no space" if action == "short write" else action):
                return
        except OSError as error:  # as the library tells it
            raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None

    def disturbed_write(self, write: Callable[[bytes], int], data: bytes, path: str) -> int:
        """Write; a short one takes half and says so, as the system's does."""
        action = self._next(path)
        if action == "short write":
            return write(data[: len(data) // 2])
        if action == "kill within":
            write(data[: len(data) // 2])
        with _acting(action):
            return write(data)

    def _next(self, path: str, *, renames: bool = False) -> str:
        """Write an operation down and return what befalls it."""
        place = place_of(path)
        if not place:
            return ""
        os.write(self.told, f"{place}\n".encode())
        asked = self.disturbance
        if asked is None or place != asked.place or (asked.action == "torn rename" and not renames):
            return ""
        self.seen += 1
        if not asked.nth < self.seen <= asked.nth + asked.lasts:
            return ""
        os.write(self.told, f"{BEFELL}\n".encode())
        return asked.action


class _acting:  # noqa: N801
    """A block before, within or after which something happens."""

    def __init__(self, action: str) -> None:
        self.action = action

    def __enter__(self) -> None:
        if self.action in ("kill before", "kill within"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action in ERRORS:
            raise OSError(ERRORS[self.action], os.strerror(ERRORS[self.action]))

    def __exit__(self, *_: object) -> None:
        if self.action == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)


def place_of(path: str) -> str:
    """Return what a file is for; nothing where it is none of the run's or the cache's."""
    return next((place for place, pattern in PLACES.items() if re.search(pattern, f"{path}/")), "")
