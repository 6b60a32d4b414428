"""From the bytes of a text file to text: UTF-8, or UTF-16 and UTF-32 that say so."""

from __future__ import annotations

import codecs
from pathlib import Path

from limner.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """Read a text file as UTF-8 (a byte order mark is fine) or marked UTF-16/32; anything else is a UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).", "Check its permissions.") from error
    return to_text(data, str(path))


def to_text(data: bytes, where: str) -> str:
    """Return the text that bytes hold; `where` names them in messages."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"byte 0x{data[error.start]:02x} at {error.start}"
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise UserError(f"{where}: is not {name} ({what}).", "Save it as UTF-8.") from error
    if "\0" in text:
        raise UserError(f"{where}: is not text (it holds zero bytes).", "Save it as UTF-8.")
    return text
