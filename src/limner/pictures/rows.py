"""Pictures in the rows of a Hugging Face data set: parquet files, a saved data set, or a name on the hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from limner.errors import UserError
from limner.pictures.picture import Picture

HUB_MARK = "hf:"
_CAPTION_COLUMNS = ("text", "caption", "prompt")


def hub_name(place: Path) -> str:
    """Return the name on the hub that "hf:OWNER/NAME" says, even where it was made an absolute path; else nothing."""
    text = place.as_posix()
    at = text.find(HUB_MARK)
    return text[at + len(HUB_MARK) :] if at == 0 or (at > 0 and text[at - 1] == "/") else ""


def holds_rows(place: Path) -> bool:
    """Tell whether a path is a data set of rows: "hf:NAME", a parquet file, or a folder of them or saved to disk."""
    if hub_name(place) or place.suffix == ".parquet":
        return True
    return place.is_dir() and ((place / "state.json").is_file() or any(place.glob("*.parquet")))


def read_rows(place: Path) -> list[Picture]:
    """List the pictures of a data set. Its rows stay on disk (memory-mapped Arrow) and are read when needed."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{place}: needs the package datasets.", "Install it: pip install 'limner[data]'")
    table = _load(place)
    column = _picture_column(table, place)
    captions = _captions(table, place)
    raw = table.select_columns([column]).cast_column(column, _undecoded())

    def reader(index: int) -> bytes:
        cell = raw[index][column]
        if cell is None:
            raise OSError("the row has no picture")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    return [
        Picture(
            f"row {index}",
            place,
            None if captions is None else str(captions[index] or ""),
            "" if captions is None else "rows",
            reader=_Reader(reader, index),
        )
        for index in range(len(raw))
    ]


class _Reader:
    """Reads one row; smaller than a closure, of which a large set would have many."""

    __slots__ = ("_index", "_read")

    def __init__(self, read: Any, index: int) -> None:
        self._read, self._index = read, index

    def __call__(self) -> bytes:
        return self._read(self._index)


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _load(place: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if name := hub_name(place):
            table = datasets.load_dataset(name, split="train")
        elif (place / "state.json").is_file():
            table = datasets.load_from_disk(str(place))
        else:
            files = [place] if place.is_file() else sorted(place.glob("*.parquet"))
            table = datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")
    except Exception as error:  # the library raises many kinds; all are about what the user named
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{place}: cannot be read as a data set ({first}).", "Check its name and files.") from error
    if isinstance(table, dict):
        raise UserError(f"{place}: has the splits {', '.join(map(str, table))}.", "Name the folder of one split.")
    return table


def _picture_column(table: Any, place: Path) -> str:
    import datasets

    columns = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if not columns and "image" in table.features:
        columns = ["image"]  # parquet that was not written by the library has a struct of bytes and path
    if len(columns) != 1:
        raise UserError(
            f"{place}: has {len(columns)} columns of pictures (columns: {', '.join(table.features)}).",
            "Keep one, called image.",
        )
    return columns[0]


def _captions(table: Any, place: Path) -> Any:
    """Return the column of captions; None when there is none."""
    present = [name for name in _CAPTION_COLUMNS if name in table.features]
    if len(present) > 1:
        raise UserError(f"{place}: columns {' and '.join(present)} may both be the caption.", "Keep one of them.")
    return table[present[0]] if present else None
