"""The facts of picture files, and where they are kept, so that a large set is not decoded again to be checked."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from limner.errors import UserError
from limner.files import require_writable
from limner.pictures.cache import ROOM

WRITE_EVERY = 200


@dataclass(frozen=True)
class Look:
    """The facts of one picture file; a problem when it cannot be used."""

    sha256: str = ""
    """Of the file's bytes."""
    size: tuple[int, int] = (0, 0)
    """Width and height when upright."""
    notes: tuple[str, ...] = ()
    has_alpha: bool = False
    likeness: int = 0
    """64 bits that hardly change when the picture is scaled or compressed again; 0 for a picture of one colour."""
    blur: float = 0.0
    """From 0 (sharp) to 1 (blurred): how little is lost by blurring it more."""
    centre: tuple[float, float] = (0.5, 0.5)
    """Where a crop has its middle, in [0, 1] from top left."""
    mask_sha256: str = ""
    problem: str = ""


class Looks:
    """Looks by key, in one SQLite file: safe for kill -9 and for two runs at once, usable from several threads.

    Writes are gathered into short transactions, so that no run keeps another one waiting. The file is a memory and
    no more: where it turns out to be damaged, its looks are found out again.
    """

    def __init__(self, cache: Path) -> None:
        self._file = cache / "looks.sqlite"
        self._lock = threading.Lock()
        self._unwritten: list[tuple[str, str]] = []
        require_writable(cache, ROOM)
        try:
            self._database = self._open()
        except sqlite3.OperationalError as error:
            raise UserError(
                f"{self._file}: {error}.", "Wait for the other run, or name another LIMNER_CACHE."
            ) from error
        except sqlite3.DatabaseError:
            self._file.unlink(missing_ok=True)
            self._database = self._open()

    def get(self, key: str) -> Look | None:
        """Return a look that was kept, or None."""
        with self._lock:
            try:
                row = self._database.execute("SELECT facts FROM looks WHERE key = ?", (key,)).fetchone()
            except sqlite3.DatabaseError:
                return None
        if row is None:
            return None
        facts = json.loads(row[0])
        for name in ("size", "notes", "centre"):
            facts[name] = tuple(facts[name])
        return Look(**facts)

    def put(self, key: str, look: Look) -> None:
        """Keep a look; it is on disk after at most WRITE_EVERY more, or at `close`."""
        with self._lock:
            self._unwritten.append((key, json.dumps(vars(look), ensure_ascii=False)))
            if len(self._unwritten) >= WRITE_EVERY:
                self._write()

    def close(self) -> None:
        """Write what is not on disk yet."""
        with self._lock:
            self._write()
            self._database.close()

    def _write(self) -> None:
        with suppress(sqlite3.DatabaseError), self._database:
            self._database.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?)", self._unwritten)
        self._unwritten = []

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._file, timeout=60, check_same_thread=False)
        database.execute("CREATE TABLE IF NOT EXISTS looks (key TEXT PRIMARY KEY, facts TEXT NOT NULL)")
        database.commit()
        return database
