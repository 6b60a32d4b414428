"""The run folder: where each stage finds what the stage before it left."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from limner.errors import UserError
from limner.machine import peak_memory_gib, reset_peak_memory


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run's folder; the only place where their names are written."""

    path: Path
    writes: bool = True
    """False in the other processes of a shared run: they read the folder and leave it as it is."""

    recipe = property(lambda self: self.path / "recipe.toml")
    provenance = property(lambda self: self.path / "provenance.json")
    data_files = property(lambda self: self.path / "data_files.json")
    log = property(lambda self: self.path / "log.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    adapter = property(lambda self: self.path / "adapter.safetensors")
    model = property(lambda self: self.path / "model")
    single_file = property(lambda self: self.path / "model.safetensors")
    pictures = property(lambda self: self.path / "pictures")
    class_pictures = property(lambda self: self.path / "class_pictures")
    held_out = property(lambda self: self.path / "held_out")
    images = property(lambda self: self.path / "images")
    previews = property(lambda self: self.path / "previews")
    scores = property(lambda self: self.path / "scores.json")
    report = property(lambda self: self.path / "report.html")

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
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                f"{path}: is not empty, and a new run would mix with what is in it.",
                "Name another folder with --run, or continue that run with --resume.",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error.strerror}).", "Name another folder with --run.") from error
        return RunDir(path)

    @staticmethod
    def open(path: Path) -> RunDir:
        """Open a run folder that exists and holds a recipe."""
        run = RunDir(path)
        if not run.recipe.is_file():
            found = "there is no such folder" if not path.exists() else "it holds no recipe.toml"
            raise UserError(f"{path}: is not a run folder ({found}).", "Make one with: limner train PICTURES --run DIR")
        return run

    def append_log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl: `event` says which kind."""
        if not self.writes:
            return
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note a phase's seconds and its own peak memory in the log, however it ends."""
        started = time.perf_counter()
        reset_peak_memory()
        try:
            yield
        finally:
            if self.path.is_dir():
                seconds = round(time.perf_counter() - started, 3)
                self.append_log("phase", name=phase, seconds=seconds, peak_memory_gib=round(peak_memory_gib(), 3))

    def read_log(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind, in order; a last line cut short by a kill is left out."""
        if not self.log.is_file():
            return []
        rows = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return [row for row in rows if row["event"] == event]

    def update_provenance(self, **fields: Any) -> None:
        """Merge `fields` into provenance.json."""
        if not self.writes:
            return
        known = read_json(self.provenance) if self.provenance.is_file() else {}
        write_json(self.provenance, {**known, **fields})


def unused(parent: Path, name: str) -> Path:
    """Return `parent/<name>-<n>` for the smallest n from 1 that is not taken."""
    return next(path for n in count(1) if not (path := parent / f"{name}-{n}").exists())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a new file or folder, which takes `path`'s place if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as beside:
        new = Path(beside, path.name)
        yield new
        if path.is_dir():  # only an empty folder can be replaced by another
            os.replace(path, Path(beside, f"{path.name}.old"))
        os.replace(new, path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old or the new one, whenever the machine stops."""
    with replacing(path) as new, new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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
