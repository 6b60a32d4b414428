"""Find the pictures of a folder, and say what else lies there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.errors import UserError

PICTURE_ENDINGS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".avif",
        ".heic",
        ".heif",
        ".jxl",
    }
)
COMPANION_ENDINGS = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv"})
"""Files that may belong to pictures: not worth a word when they are ignored."""
_RAW_ENDINGS = frozenset({".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"})


@dataclass(frozen=True)
class Found:
    """What was found, in a fixed order."""

    pictures: tuple[tuple[str, Path], ...]
    """Name (relative to the folder it was found in; unique) and path of each picture."""
    notes: tuple[str, ...]
    """Lines about what was left alone."""


def is_picture_name(path: Path) -> bool:
    """Tell by its name whether a file is meant to be a picture."""
    return path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith(".")


def find_pictures(paths: Path | Sequence[Path]) -> Found:
    """Find the pictures in a folder, or in a list of folders and files; the folder is only read.

    Files given by name are taken whatever their name is; in a folder the ending decides.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    if not given:
        raise UserError("No pictures were named.", "Name a folder of pictures, or several files.")
    found: dict[str, Path] = {}
    notes: list[str] = []
    seen: set[Path] = set()
    for place in given:
        for name, path in _find_in(place, several=len(given) > 1, notes=notes):
            if path.resolve() in seen:
                notes.append(f"{path}: named twice, used once")
                continue
            seen.add(path.resolve())
            found[_unused(name, path, found)] = path
    return Found(tuple(found.items()), tuple(notes))


def _find_in(place: Path, *, several: bool, notes: list[str]) -> list[tuple[str, Path]]:
    if not place.exists():
        near = _similar_neighbour(place)
        raise UserError(f"{place}: there is no such file or folder.", f"Did you mean {near}?" if near else "")
    if not place.is_dir():
        return [(place.name, place)]
    try:
        entries = sorted(place.iterdir(), key=lambda p: p.name)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}).", "Check the folder's permissions.") from error
    pictures = [p for p in entries if is_picture_name(p) and not p.is_dir()]
    folders = [p for p in entries if p.is_dir()]
    if not pictures:
        raise _nothing_found(place, entries, [p for p in folders if not p.name.startswith(".")])
    _note_ignored(entries, pictures, folders, notes)
    return [(f"{place.name}/{p.name}" if several else p.name, p) for p in pictures]


def _note_ignored(entries: list[Path], pictures: list[Path], folders: list[Path], notes: list[str]) -> None:
    taken = set(pictures) | set(folders)
    others = [p for p in entries if p not in taken and p.suffix.lower() not in COMPANION_ENDINGS]
    if folders:
        notes.append(f"ignored {_count(len(folders), 'sub-folder')} ({_some([p.name for p in folders])})")
    if others:
        notes.append(f"ignored {_count(len(others), 'other file')} ({_some([p.name for p in others])})")
    raw = Counter(p.suffix.lower() for p in others if p.suffix.lower() in _RAW_ENDINGS)
    for ending, number in raw.items():
        notes.append(f"{_count(number, f'{ending} file')}: raw camera files are not read; export them as JPEG or PNG")


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
    import difflib

    parent = place.parent
    if not parent.is_dir() or not _readable(parent):
        return None
    names = difflib.get_close_matches(place.name, [p.name for p in parent.iterdir()], n=1)
    return parent / names[0] if names else None


def _unused(name: str, path: Path, taken: dict[str, Path]) -> str:
    """Return a name that no other picture has: two folders of the same name may be given."""
    for candidate in (name, str(path), str(path.resolve())):
        if candidate not in taken:
            return candidate
    raise AssertionError(f"{path.resolve()} was not recognised as named twice")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
