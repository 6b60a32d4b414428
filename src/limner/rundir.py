"""The run folder: where each stage finds what the stage before it left."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from limner.errors import Unwritable, UserError
from limner.files import replacing, require_writable, sweep, sync, writing

UNBEGUN = {".lock", "log.jsonl", "provenance.json"}
"""What a run leaves that was killed before its recipe was written: such a folder is as good as empty."""


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run's folder; the only place where their names are written."""

    path: Path
    writes: bool = True
    """False in the other processes of a shared run: they read the folder and leave it as it is."""
    unwritten: list[bytes] = field(default_factory=list[bytes], compare=False)
    """Lines of the log that the disk has not taken yet; the next line brings them along."""

    recipe = property(lambda self: self.path / "recipe.toml")
    provenance = property(lambda self: self.path / "provenance.json")
    data_files = property(lambda self: self.path / "data_files.json")
    log = property(lambda self: self.path / "log.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    adapter = property(lambda self: self.path / "adapter.safetensors")
    subject = property(lambda self: self.path / "subject")
    model = property(lambda self: self.path / "model")
    single_file = property(lambda self: self.path / "model.safetensors")
    pictures = property(lambda self: self.path / "pictures")
    class_pictures = property(lambda self: self.path / "class_pictures")
    held_out = property(lambda self: self.path / "held_out")
    distractors = property(lambda self: self.path / "distractors")
    images = property(lambda self: self.path / "images")
    previews = property(lambda self: self.path / "previews")
    ladder = property(lambda self: self.images / "ladder")
    validation = property(lambda self: self.path / "validation")
    untaught = property(lambda self: self.validation / "untaught")
    course = property(lambda self: self.path / "course.json")
    scores = property(lambda self: self.path / "scores.json")
    ladder_scores = property(lambda self: self.path / "ladder.json")
    inference = property(lambda self: self.path / "inference.json")
    report = property(lambda self: self.path / "report.html")

    @property
    def sitter(self) -> Path:
        """Return the pictures that likeness is measured against: of a subject beneath a few-step adapter its own."""
        beneath = self.subject / "pictures"
        return beneath if beneath.is_dir() else self.pictures

    def embedding(self, word: str) -> Path:
        """Return the file of a learned word: its letters, digits and dashes make the name."""
        return self.path / "embeddings" / f"{re.sub(r'[^A-Za-z0-9_-]+', '', word) or 'word'}.safetensors"

    def embeddings(self) -> list[Path]:
        """Return the files of the learned words."""
        return sorted((self.path / "embeddings").glob("*.safetensors"))

    @staticmethod
    def create(path: Path | None, *, name: str, root: Path = Path("runs")) -> RunDir:
        """Make a new run folder: `path` if given (it must be new or empty), else `runs/<name>-<n>`."""
        if path is None:
            path = unused(root, name)
        run = RunDir(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, and a run is a folder.", "Name another with --run.")
        if path.is_dir():
            sweep(path)
        if path.exists() and {file.name for file in path.iterdir()} - UNBEGUN:
            raise UserError(
                f"{path}: is not empty, and a new run would mix with what is in it.",
                "Name another folder with --run, or continue that run with --resume.",
            )
        require_writable(path, "Name another folder with --run.")
        return run

    @staticmethod
    def open(path: Path) -> RunDir:
        """Open a run folder that exists and holds a recipe."""
        run = RunDir(path)
        if not run.recipe.is_file():
            found = "there is no such folder" if not path.exists() else "it holds no recipe.toml"
            raise UserError(f"{path}: is not a run folder ({found}).", "Make one with: limner train PICTURES --run DIR")
        sweep(path)
        return run

    def append_log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl: `event` says which kind. What the disk does not take waits in `unwritten`."""
        if not self.writes:
            return
        self.unwritten.append(json.dumps({"event": event, **fields}, ensure_ascii=False).encode() + b"\n")
        with suppress(OSError), self.log.open("ab+", buffering=0) as file:
            whole = file.seek(0, os.SEEK_END)
            file.seek(max(0, whole - 1))
            torn = file.read() not in (b"", b"\n")  # by a kill: the next line begins on a line of its own
            lines = b"\n" * torn + b"".join(self.unwritten)
            try:
                taken = file.write(lines)
            except OSError:
                taken = 0
            if taken == len(lines):
                self.unwritten.clear()
            else:
                file.truncate(whole)

    def has_strength(self) -> bool:
        """Tell whether what was trained can be scaled; a whole model and a learned word are there or not."""
        return self.adapter.is_file()

    def require_log(self) -> None:
        """Refuse to go on as if nothing were: the disk did not take some lines of the log.

        Raises:
            Unwritable: says how many.
        """
        if self.unwritten:
            message = f"{self.log}: {len(self.unwritten)} lines cannot be written; they wait."
            raise Unwritable(message, "Make room on its disk.")

    def sync_log(self) -> None:
        """Have the disk hold the log as it is."""
        if self.log.is_file():
            with writing(self.log):
                sync(self.log)

    def cut_log(self, step: int) -> None:
        """Drop what was logged after `step`, which is about to be done again, and lines that a kill cut short."""
        if not self.writes:
            return
        kept = [row for row in self._logged() if row.get("step", 0) <= step]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        write_atomically(self.log, "".join(lines).encode())

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note a phase's seconds and its own peak memory in the log, however it ends."""
        from limner.machine import peak_memory_gib, reset_peak_memory

        started = time.perf_counter()
        reset_peak_memory()
        try:
            yield
        finally:
            if self.path.is_dir():
                seconds = round(time.perf_counter() - started, 3)
                self.append_log("phase", name=phase, seconds=seconds, peak_memory_gib=round(peak_memory_gib(), 3))

    def read_log(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind, in order; a line cut short by a kill is left out."""
        return [row for row in self._logged() if row["event"] == event]

    def _logged(self) -> list[dict[str, Any]]:
        rows = []
        for line in self.log.read_bytes().splitlines() if self.log.is_file() else ():
            with suppress(ValueError):  # of JSON or of UTF-8
                rows.append(json.loads(line))
        return rows

    def update_provenance(self, **fields: Any) -> None:
        """Merge `fields` into provenance.json."""
        if not self.writes:
            return
        known = read_json(self.provenance) if self.provenance.is_file() else {}
        write_json(self.provenance, {**known, **fields})


def unused(parent: Path, name: str) -> Path:
    """Return `parent/<name>-<n>` for the smallest n from 1 that is not taken."""
    return next(path for n in count(1) if not (path := parent / f"{name}-{n}").exists())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old or the new one, whenever the machine stops."""
    with replacing(path) as new:
        new.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a UserError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing.", "Run the stage that makes it first.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is damaged (line {error.lineno}).", "Delete it and run its stage again.") from error
