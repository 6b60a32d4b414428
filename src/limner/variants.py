"""Variants: what slots of one command differ in, from a table or a grid; every row has its own name and settings."""

from __future__ import annotations

import csv
import io
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.errors import UserError
from limner.recipe import meant, parse_settings, setting_names

ALIASES = {"token": "pictures.token", "class_noun": "pictures.class_noun"}
"""Columns that have a shorter name than their setting."""
WORDS = ("name", "pictures", *ALIASES)
"""Columns whose cells are text, whatever they look like."""
OWN = ("steps", "epochs", "exposures", "batch", "learning_rate", "seed", "resolution", "init_from", "adapter.rank",
       "adapter.alpha", "adapter.learning_rate", "adapter.text_encoder_learning_rate", "adapter.save_precision",
       "adapter.initializer", "adapter.lora.rank", "adapter.lora.alpha", "adapter.lora.text_encoder_learning_rate",
       "adapter.lora.save_precision", "adapter.words.initializer", "adapter.words.learning_rate", "pictures.", "prior.",
       "optimizer.", "ema.", "checkpoint.", "preview.", "validation.", "evaluation.")  # fmt: skip
"""Settings and sections that each slot of one batch may have of its own; all others decide what slots share: the base,
its number format, the layers that learn, what is minimised."""
SHARED = ("pictures.subjects", "prior.teacher")
"""Settings in those sections that slots share all the same."""
NAME = re.compile(r"\w[\w .,=+()-]*")
LONGEST = 120
GRID = "adapter.rank=4,8,16"


@dataclass(frozen=True)
class Variant:
    """One run among several that train together: its name, its pictures, and the settings that are its own."""

    name: str
    pictures: tuple[Path, ...]
    settings: Mapping[str, Any]
    where: str = ""
    """Where it is written, for messages: "runs.csv, row 3"."""
    words: Mapping[str, str] | None = None
    """The settings as they were written."""


@dataclass(frozen=True)
class _Row:
    """One row: its settings, as values and as they were written."""

    where: str
    values: Mapping[str, Any]
    words: Mapping[str, str]


def read_variants(source: str | Path | Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> list[Variant]:
    """Return the variants of a table (.csv, .toml, or a mapping for each row) or of a grid such as "seed=0,1".

    `pictures` are those of every row, where the table has no column `pictures`, whose paths are relative to the file.

    Raises:
        UserError: a column or a cell that cannot be, with its file and row.
    """
    beside = Path()
    if not isinstance(source, str | Path):
        what, rows = "variants", [_row_of(row, f"variants, row {n}") for n, row in enumerate(source, start=1)]
    elif Path(source).is_file():
        what, beside = str(source), Path(source).parent
        rows = list((_toml_rows if what.endswith(".toml") else _csv_rows)(Path(source)))
    elif "=" in str(source):
        return grid(parse_axes(str(source).split(), "--variants"), pictures, "--variants")
    else:
        raise UserError(
            f"--variants {source}: there is no such file.", f"Name a .csv or .toml file, or a grid such as {GRID}."
        )
    if not rows:
        raise UserError(f"{what}: has no rows.", "Write one for each run.")
    return _named([_with_pictures(row, pictures, beside, what) for row in rows])


def parse_axes(words: Sequence[str], what: str) -> dict[str, list[str]]:
    """Read "adapter.rank=4,8,16" words: each setting with the values that it is to take, as they were written."""
    axes: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{what}: {word!r} is no setting with its values.", f"Write it as {GRID}.")
        if key in axes:
            raise UserError(f"{what}: {key} is there twice.", "Give all its values at once.")
        axes[key] = values_in(text)
        if "" in axes[key]:
            raise UserError(f"{what}: {word} has an empty value.", "Write the values with a comma between them.")
        if len(set(axes[key])) < len(axes[key]):
            raise UserError(f"{what}: {word} has a value twice.", "Give each once.")
    return axes


def values_in(text: str) -> list[str]:
    """Return the values between commas that stand in no brackets and no quotes."""
    values: list[str] = []
    for part in text.split(","):
        if values and (values[-1].count("[") > values[-1].count("]") or values[-1].count('"') % 2):
            values[-1] += f",{part}"
        else:
            values.append(part)
    return [value.strip() for value in values]


def grid(axes: Mapping[str, Sequence[str]], pictures: Sequence[Path], what: str) -> list[Variant]:
    """Return a variant for every combination of values, the last setting changing fastest."""
    if not pictures:
        raise UserError(f"{what}: no pictures were given.", "Name the folder of the subject's pictures.")
    rows: list[_Row] = []
    for values in itertools.product(*axes.values()):
        words = dict(zip(axes, values, strict=True))
        rows.append(_Row(f"{what} {_told(words)}", _checked(words, what), words))
    return _named([_with_pictures(row, pictures, Path(), what) for row in rows])


def _csv_rows(path: Path) -> Iterator[_Row]:
    """Yield the rows of a CSV file whose first row names the columns."""
    lines = csv.reader(io.StringIO(text := _read(path)), delimiter=_delimiter(text))
    columns: list[str] = []
    for number, cells in enumerate(([cell.strip() for cell in row] for row in lines), start=1):
        where = f"{path}, row {number}"
        if not any(cells):
            continue
        if not columns:
            columns = cells
            if twice := [name for name in columns if columns.count(name) > 1]:
                raise UserError(f"{where}: column {twice[0]!r} is there twice.", "Leave one out.")
            for name in columns:
                _require_own(name, where)
            continue
        if len(cells) != len(columns):
            raise UserError(f"{where}: has {len(cells)} cells, and the first row names {len(columns)} columns.",
                            "Put a text with a comma into double quotes.")  # fmt: skip
        for name, cell in zip(columns, cells, strict=True):
            if not cell:
                raise UserError(f"{where}: {name} is empty.", "Fill it in, or leave the column out for all rows.")
        words = dict(zip(columns, cells, strict=True))
        yield _Row(where, _checked(words, where), words)


def _toml_rows(path: Path) -> Iterator[_Row]:
    """Yield the rows of a TOML file, a `[[variant]]` each."""
    try:
        tree = tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: is not readable TOML ({error}).", "Mend that line.") from error
    rows = tree.pop("variant", [])
    if tree or not isinstance(rows, list):
        found = f"{next(iter(tree))} is no part of it" if tree else "variant is no list"
        raise UserError(
            f"{path}: {found}.", "Write a [[variant]] for each run, and settings of all on the command line."
        )
    for number, row in enumerate(rows, start=1):
        yield _row_of(dict(_flat(row)), f"{path}, variant {number}")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _row_of(values: Mapping[str, Any], where: str) -> _Row:
    """Return a row of values that need no reading."""
    for name in values:
        _require_own(name, where)
    words = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    if empty := [name for name, word in words.items() if not word.strip()]:
        raise UserError(f"{where}: {empty[0]} is empty.", "Fill it in, or leave it out.")
    return _Row(where, dict(values), words)


def _checked(words: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the values of cells: TOML, and what is not TOML is text."""
    for name in words:
        _require_own(name, where)
    return {key: word if key in WORDS else parse_settings([f"{key}={word}"])[key] for key, word in words.items()}


def _require_own(name: str, where: str) -> None:
    """Refuse a column that is no setting, or one that all slots of a batch share."""
    if name in WORDS:
        return
    known = {setting.name for setting in setting_names()}
    if name not in known and not any(one.startswith(f"{name}.") for one in known):
        raise UserError(f"{where}: {name!r} is no setting, and none of the columns name, pictures, token, class_noun.",
                        meant(name))  # fmt: skip
    is_own = name in OWN or name.startswith(tuple(own for own in OWN if own.endswith(".")))
    if not is_own or name in SHARED:
        may = ", ".join(f"{own}*" if own.endswith(".") else own for own in OWN)
        raise UserError(
            f"{where}: {name} is the same for all slots of one batch. They may differ in {may}.",
            f"Give it once, to all: {name}=..." if name in known else "Name one of its settings.",
        )


def _with_pictures(row: _Row, pictures: Sequence[Path], beside: Path, what: str) -> tuple[_Row, tuple[Path, ...]]:
    """Return a row with its pictures: its own, or those of all."""
    own = row.values.get("pictures")
    if bool(own) == bool(pictures):
        found = "names pictures, and pictures were given for all" if own else "names no pictures, and none were given"
        raise UserError(f"{row.where}: {found}.", f"Add a column pictures to {what}, or name one folder for all rows.")
    return row, (beside / Path(str(own)).expanduser(),) if own else tuple(pictures)


def _named(rows: Sequence[tuple[_Row, tuple[Path, ...]]]) -> list[Variant]:
    """Return the variants, each under its name: the one given, or what sets its row apart from the others."""
    keys = list(dict.fromkeys(key for row, _ in rows for key in row.words if key not in ("name", "pictures")))
    apart = [key for key in keys if len({row.words.get(key) for row, _ in rows}) > 1]
    several = len({pictures for _, pictures in rows}) > 1
    found: dict[str, Variant] = {}
    for row, pictures in rows:
        told = {key: row.words[key] for key in apart if key in row.words}
        folder = pictures[0].resolve().name
        made = ",".join(filter(None, [folder if several or not told else "", _told(told)]))
        name = str(row.values["name"]) if "name" in row.values else re.sub(r"[^\w .,=+()-]+", "-", made)[:LONGEST]
        if not NAME.fullmatch(name) or name.strip(" .") != name or len(name) > LONGEST or name.endswith(".json"):
            raise UserError(
                f"{row.where}: the name {name!r} cannot be that of a run's folder.",
                "Use letters, digits, blanks and . , = + - ( ), and begin with a letter or digit.",
            )
        if before := found.get(name.casefold()):
            raise UserError(f"{row.where}: has the name {name!r}, as {before.where} has.",
                            "Give each its own in a column name.")  # fmt: skip
        own = {ALIASES.get(key, key): value for key, value in row.values.items() if key not in ("name", "pictures")}
        if len(own) < len(row.values.keys() - {"name", "pictures"}):
            raise UserError(f"{row.where}: token or class_noun is there twice.", "Leave pictures.token out, or token.")
        found[name.casefold()] = Variant(name, pictures, own, row.where, row.words)
    return list(found.values())


def _told(words: Mapping[str, str]) -> str:
    """Return settings in few words: the last part of each name, where that is enough."""
    lasts = [key.rpartition(".")[2] for key in words]
    short = {key: last if lasts.count(last) == 1 else key for key, last in zip(words, lasts, strict=True)}
    return ",".join(f"{short[key]}={word}" for key, word in words.items())


def _delimiter(text: str) -> str:
    """Return what stands between the cells: a comma, or the semicolon or tab of a spreadsheet's export."""
    header = text.lstrip().partition("\n")[0]
    return next((one for one in ",;\t" if one in header), ",")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).", "Give a file that can.") from error
