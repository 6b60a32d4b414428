"""Captions from a metadata.jsonl or metadata.csv beside the pictures, as Hugging Face's imagefolder has them."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from limner.errors import UserError
from limner.pictures.text import read_text

FILES = ("metadata.jsonl", "metadata.csv")
_COLUMNS = ("text", "caption", "prompt")


@dataclass(frozen=True)
class Metadata:
    """What a metadata file says."""

    path: Path
    captions: dict[str, str]
    """Caption by the picture's path relative to the metadata file, with "/" and in NFC."""

    def caption(self, relative: str) -> str | None:
        """Return the caption of a picture, by its path relative to the metadata file."""
        return self.captions.get(unicodedata.normalize("NFC", relative))


def read_metadata(folder: Path) -> Metadata | None:
    """Read a folder's metadata file; None when it has none, a UserError when it is not understood."""
    present = [folder / name for name in FILES if (folder / name).is_file()]
    if not present:
        return None
    if len(present) > 1:
        raise UserError(f"{folder}: has both {' and '.join(FILES)}.", "Keep one of them.")
    return read_metadata_file(present[0])


def read_metadata_file(path: Path) -> Metadata:
    """Read a .jsonl or .csv of file_name and text; a UserError when it is not understood."""
    captions: dict[str, str] = {}
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: has no file_name (found: {', '.join(map(str, row))}).", "Each row needs one.")
        relative = PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts:
            raise UserError(f"{where}: {name!r} lies outside the folder.", "Use paths relative to the metadata file.")
        column = _caption_column(row, where)
        key = unicodedata.normalize("NFC", str(relative))
        if key in captions:
            raise UserError(f"{where}: {name!r} is named twice.", "Keep one row for each picture.")
        captions[key] = str(row[column] or "")
    if not captions:
        raise UserError(f"{path}: has no rows.", "Remove it or fill it.")
    return Metadata(path, captions)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    text = read_text(path)
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        for row in reader:
            yield reader.line_num, {str(key): value for key, value in row.items()}
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: is not JSON ({error.msg}).", "Mend that line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: is not an object with file_name and text.", "Mend that line.")
        yield number, row


def _caption_column(row: dict[str, object], where: str) -> str:
    present = [column for column in _COLUMNS if column in row]
    if len(present) != 1:
        found = f"columns {' and '.join(present)} may both be the caption" if present else f"columns: {', '.join(row)}"
        raise UserError(f"{where}: no single caption column ({found}).", f"Call it {' or '.join(_COLUMNS)}.")
    return present[0]
