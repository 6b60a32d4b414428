"""The cache on disk: tensors under the hash of what they were made from; safe for kill -9 and for two runs at once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from limner.errors import UserError

FORMAT = 1
"""Part of every key: raise it when the meaning of an entry changes."""


def default_cache() -> Path:
    """Return the cache folder: $LIMNER_CACHE, else `limner` in the platform's cache folder."""
    if chosen := os.environ.get("LIMNER_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"


def key_of(**parts: Any) -> str:
    """Return the key (SHA-256, 64 hex digits) of what an entry is made from; parts must be plain JSON values."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Entries of one folder. An entry is written beside its place and renamed into it, so it is whole or absent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[str] = []
        """Keys of entries that were found damaged and removed."""
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(root, error) from error

    def path(self, key: str) -> Path:
        """Return where an entry lies."""
        return self.root / key[:2] / f"{key}.safetensors"

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
                return load(body)
        except SafetensorError:
            pass
        self.damaged.append(key)
        path.unlink(missing_ok=True)
        return None

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry; when two runs write the same one, either copy stays."""
        body = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        path = self.path(key)
        temporary = ""
        try:
            path.parent.mkdir(exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.write(zlib.crc32(body).to_bytes(4, "little"))
            os.replace(temporary, path)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise _unwritable(self.root, error) from error


def _unwritable(root: Path, error: OSError) -> UserError:
    return UserError(
        f"{root}: the cache cannot be written ({error.strerror or error}).",
        "Make room or name another folder in the environment variable LIMNER_CACHE.",
    )
