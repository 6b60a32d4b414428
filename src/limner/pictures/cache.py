"""The cache on disk: tensors under the hash of what they were made from; safe for kill -9 and for two runs at once."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from limner.errors import Unwritable, UserError
from limner.files import BASES, require_writable, sweep
from limner.rundir import write_atomically

FORMAT = 2
"""Part of every key: raise it when the meaning of an entry changes."""
ROOM = "Make room or name another folder in the environment variable LIMNER_CACHE."


def key_of(kind: str, **parts: Any) -> str:
    """Return the key ("kind/" and a SHA-256) of what an entry is made from; parts must be plain JSON values."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return f"{kind}/{hashlib.sha256(text.encode()).hexdigest()}"


class Cache:
    """Entries of one folder. An entry is written beside its place and renamed into it, so it is whole or absent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[str] = []
        """Keys of entries that were found damaged and removed."""
        require_writable(root, ROOM)
        sweep(root)

    def path(self, key: str) -> Path:
        """Return where an entry lies."""
        kind, _, digest = key.partition("/")
        return self.root / kind / digest[:2] / f"{digest}.safetensors"

    def load(self, key: str) -> dict[str, Tensor] | None:
        """Return an entry's tensors, or None when it is absent or damaged (a damaged one is removed)."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        body, checksum = data[:-4], data[-4:]
        try:
            if zlib.crc32(body).to_bytes(4, "little") == checksum:
                with suppress(OSError):
                    os.utime(path)  # the oldest use is what prune removes first
                return load(body)
        except SafetensorError:
            pass
        self.damaged.append(key)
        path.unlink(missing_ok=True)
        return None

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry; when two runs write the same one, either copy stays."""
        body = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        try:
            write_atomically(self.path(key), body + zlib.crc32(body).to_bytes(4, "little"))
        except Unwritable as error:
            raise Unwritable(f"{self.root}: the cache is not taken by the disk. {error.message}", ROOM) from error


@dataclass(frozen=True)
class Holding:
    """What the cache holds of one kind."""

    kind: str
    """The folder's name: moments, text, class-pictures ..."""
    files: int
    bytes: int


def list_cache(root: Path) -> list[Holding]:
    """Return what the cache holds, by kind."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file, and the cache is a folder.", "Name another in LIMNER_CACHE.")
    if not root.exists():
        return []
    holdings = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        sizes = [size for _, size, _ in _files(folder)]
        holdings.append(Holding(folder.name, len(sizes), sum(sizes)))
    loose = [p.stat().st_size for p in root.iterdir() if p.is_file()]
    return [*holdings, Holding("(other)", len(loose), sum(loose))] if loose else holdings


def prune_cache(root: Path, *, keep_bytes: int) -> tuple[int, int]:
    """Remove what was not used for longest until the cache is no larger; return how many files and bytes went.

    Half-written files that are older than an hour go first. A run that needs what was removed makes it again; bases
    that were made on this machine, which no run makes, stay.
    """
    files = sorted(f for f in _files(root) if root / BASES not in f[2].parents) if root.is_dir() else []
    total = sum(size for _, size, _ in files)
    removed = freed = 0
    hour_ago = time.time() - 3600
    abandoned = [f for f in files if f[2].suffix == ".part" and f[0] < hour_ago]
    for _, size, path in [*abandoned, *(f for f in files if f[2].suffix != ".part")]:
        if total <= keep_bytes and path.suffix != ".part":
            break
        path.unlink(missing_ok=True)
        total, removed, freed = total - size, removed + 1, freed + size
    return removed, freed


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield the time of last use, the size and the path of every file; another run may remove some meanwhile."""
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if S_ISREG(status.st_mode):
            yield status.st_mtime, status.st_size, path
