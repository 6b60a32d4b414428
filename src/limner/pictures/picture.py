"""One picture of the user's: where its bytes are and what came with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PICTURE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
    | {".jxl"}
)
"""What picture files are called, in any letter case."""


@dataclass(frozen=True)
class Picture:
    """A picture that was found and not looked at yet."""

    name: str
    """Unique within the set: the file's name, with its folder where several were read."""
    path: Path
    """The file, or the shard that holds it."""
    caption: str | None = None
    """A caption that the place where it was found gives: metadata, a shard, a folder's name."""
    caption_from: str = ""
    """What gave it: "metadata.jsonl", "folder name"."""
    repeats: int = 1
    """How often the place says it is to be seen in one epoch."""
    mask: Path | None = None
    """A picture beside it that is white where the loss counts."""
    subject: str = ""
    """Whom it shows, where a set has several subjects."""
    reader: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    """How its bytes are read, where it is not a file of its own."""

    def read(self) -> bytes:
        """Return the bytes of the picture file; raises OSError."""
        return self.path.read_bytes() if self.reader is None else self.reader()
