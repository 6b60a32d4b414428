"""Find the pictures of a folder, and say what else lies there."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limner.errors import UserError
from limner.pictures.metadata import FILES, Metadata, read_metadata
from limner.pictures.picture import PICTURE_ENDINGS, Picture
from limner.pictures.rows import holds_rows, hub_name, read_rows
from limner.pictures.shards import is_shard, read_shard

COMPANION_ENDINGS = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".npz"})
"""Files that may belong to pictures: not worth a word when they are ignored."""
MASK_MARKS = ("-mask", "-masklabel")
_RAW_ENDINGS = frozenset({".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"})
_KOHYA_FOLDER = re.compile(r"(?P<repeats>[1-9]\d*)_(?P<caption>.+)")


@dataclass(frozen=True)
class Found:
    """What was found, in a fixed order."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    """Lines about what was left alone."""


def is_picture_name(path: Path) -> bool:
    """Tell by its name whether a file is meant to be a picture."""
    return path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith(".")


def find_pictures(paths: Path | Sequence[Path]) -> Found:
    """Find the pictures in a folder, or in a list of folders, files, shards and data sets; they are only read.

    Files given by name are taken whatever their name is; in a folder the ending decides. Shards are .tar files;
    data sets are "hf:NAME", .parquet files, or folders of either.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    if not given:
        raise UserError("No pictures were named.", "Name a folder of pictures, or several files.")
    found: dict[str, Picture] = {}
    notes: list[str] = []
    seen: set[str] = set()
    for place in given:
        for picture in _find_in(place, notes):
            # unlike Path.resolve, realpath takes a loop of links as it is; a name tells apart what one shard holds
            real = os.path.realpath(picture.path) + ("" if picture.reader is None else f"/{picture.name}")
            if real in seen:
                notes.append(f"{picture.path}: named twice, used once")
                continue
            seen.add(real)
            name = f"{place.name}/{picture.name}" if len(given) > 1 and place.is_dir() else picture.name
            name = next(n for n in (name, str(picture.path), real) if n not in found)
            found[name] = replace(picture, name=name)
    return Found(tuple(found.values()), tuple(notes))


def entries_of(place: Path) -> list[Path]:
    """Return what a folder holds, sorted by name."""
    try:
        return sorted(place.iterdir(), key=lambda p: p.name)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}).", "Check the folder's permissions.") from error


def _find_in(place: Path, notes: list[str]) -> list[Picture]:
    if hub_name(place) or place.suffix == ".parquet":
        return read_rows(place)
    if not place.exists():
        near = _similar_neighbour(place)
        raise UserError(
            f"{place}: there is no such file or folder.",
            f"Did you mean {near}?" if near else "Name a folder of pictures, or files.",
        )
    if not place.is_dir():
        return read_shard(place) if is_shard(place) else [Picture(place.name, place)]
    entries = entries_of(place)
    folders = [p for p in entries if p.is_dir()]
    metadata = read_metadata(place)
    files = [p for p in entries if is_picture_name(p) and not p.is_dir()]
    pictures = _with_masks([Picture(p.name, p) for p in files])
    if metadata is not None:
        pictures = _with_metadata(place, pictures, metadata, notes)
    if not pictures and holds_rows(place):
        return read_rows(place)
    if not pictures:
        pictures = [picture for shard in entries if is_shard(shard) for picture in read_shard(shard)]
    if not pictures:
        pictures = _kohya_layout(folders, notes)
    if not pictures:
        raise _nothing_found(place, entries, [p for p in folders if not p.name.startswith(".")])
    _note_ignored(place, entries, pictures, notes)
    return pictures


def _with_masks(pictures: list[Picture]) -> list[Picture]:
    """Take `a-mask.png` as the mask of `a.jpg`, not as a picture."""
    by_stem = {picture.path.stem: picture for picture in pictures}
    masks: dict[str, Path] = {}
    for stem, picture in by_stem.items():
        for mark in MASK_MARKS:
            if stem.endswith(mark) and stem.removesuffix(mark) in by_stem:
                masks[stem.removesuffix(mark)] = picture.path
    taken = set(masks.values())
    return [replace(p, mask=masks.get(p.path.stem)) for p in pictures if p.path not in taken]


def _with_metadata(place: Path, pictures: list[Picture], metadata: Metadata, notes: list[str]) -> list[Picture]:
    """Give pictures their captions from the metadata file, and add those that it names in sub-folders."""
    source = metadata.path.name
    by_name = {picture.name: picture for picture in pictures}
    for relative in metadata.captions:
        if relative not in by_name and "/" in relative and (place / relative).is_file():
            by_name[relative] = Picture(relative, place / relative)
    for name, picture in by_name.items():
        by_name[name] = replace(picture, caption=metadata.caption(name), caption_from=source)
    present = {unicodedata.normalize("NFC", name) for name in by_name}
    gone = [name for name in metadata.captions if name not in present]
    if gone:
        notes.append(f"{source}: {_count(len(gone), 'row')} without a picture (first: {gone[0]})")
    return list(by_name.values())


def _kohya_layout(folders: list[Path], notes: list[str]) -> list[Picture]:
    """Understand kohya's `10_sks dog` sub-folders: repeats, and the caption where a picture has none."""
    pictures: list[Picture] = []
    for folder in folders:
        match = _KOHYA_FOLDER.fullmatch(folder.name)
        if not match or not _readable(folder):
            continue
        repeats, caption = int(match["repeats"]), match["caption"]
        files = [p for p in entries_of(folder) if is_picture_name(p) and not p.is_dir()]
        if not files:
            continue
        inside = _with_masks([Picture(f"{folder.name}/{p.name}", p) for p in files])
        pictures += [replace(p, caption=caption, caption_from="folder name", repeats=repeats) for p in inside]
        number = _count(len(inside), "picture")
        notes.append(f"kohya layout: {folder.name} is {number} × {repeats} repeats, captioned {caption!r} by default")
    return pictures


def _note_ignored(place: Path, entries: list[Path], pictures: list[Picture], notes: list[str]) -> None:
    taken = {p.path for p in pictures} | {p.mask for p in pictures if p.mask}
    used_folders = {p.path.parent for p in pictures}
    folders = [p for p in entries if p.is_dir() and p not in used_folders and not _holds_any(p, used_folders)]
    others = [
        p
        for p in entries
        if not p.is_dir() and p not in taken and p.suffix.lower() not in COMPANION_ENDINGS and p.name not in FILES
    ]
    if folders:
        notes.append(f"ignored {_count(len(folders), 'sub-folder')} ({_some([p.name for p in folders])})")
    if others:
        notes.append(f"ignored {_count(len(others), 'other file')} ({_some([p.name for p in others])})")
    raw = Counter(p.suffix.lower() for p in others if p.suffix.lower() in _RAW_ENDINGS)
    for ending, number in raw.items():
        notes.append(f"{_count(number, f'{ending} file')}: raw camera files are not read; export them as JPEG or PNG")
    match = _KOHYA_FOLDER.fullmatch(place.name)
    if match and place in used_folders:
        notes.append(
            f"{place.name} is named as kohya's folders are, and was given itself: give its parent folder to have "
            f"{match['repeats']} repeats and the caption {match['caption']!r}"
        )


def _holds_any(folder: Path, used: set[Path]) -> bool:
    return any(folder in other.parents for other in used)


def _nothing_found(place: Path, entries: list[Path], folders: list[Path]) -> UserError:
    """Say what the folder has instead, and where the pictures may be."""
    counts = [(folder, sum(is_picture_name(p) for p in folder.iterdir())) for folder in folders if _readable(folder)]
    holding = [(folder, number) for folder, number in counts if number]
    if holding:
        folder, number = holding[0]
        more = f" and {len(holding) - 1} more like it" if len(holding) > 1 else ""
        has = f"it has {_count(len(folders), 'sub-folder')}: '{folder.name}' with {_count(number, 'picture')}{more}"
        return UserError(f"No pictures in {place} ({has}).", f"Did you mean {folder}?")
    if not entries:
        return UserError(f"No pictures in {place} (it is empty).", "Put at least one picture into it.")
    files = [p.name for p in entries if not p.is_dir()]
    has = f"it has {_count(len(files), 'other file')}: {_some(files)}" if files else "it has only sub-folders"
    return UserError(f"No pictures in {place} ({has}).", f"Known endings: {' '.join(sorted(PICTURE_ENDINGS))}.")


def _readable(folder: Path) -> bool:
    try:
        next(folder.iterdir(), None)
    except OSError:
        return False
    return True


def _similar_neighbour(place: Path) -> Path | None:
    parent = place.parent
    if not parent.is_dir() or not _readable(parent):
        return None
    names = difflib.get_close_matches(place.name, [p.name for p in parent.iterdir()], n=1)
    return parent / names[0] if names else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
