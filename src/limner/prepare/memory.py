"""What the cache remembers of a set of pictures, to say what changed since the last time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from limner.errors import UserError
from limner.pictures.cache import key_of
from limner.rundir import read_json, write_json

_NAMED = 3


def remembered_file(cache: Path, folders: Collection[Path]) -> Path:
    """Return where a set is remembered; a set is known by the folders that its pictures lie in."""
    return cache / f"{key_of('sets', folders=sorted(str(folder.resolve()) for folder in folders))}.json"


def recall(file: Path) -> dict[str, str]:
    """Return the SHA-256 of each picture of the set by name, as it was the last time; empty when not known."""
    try:
        return read_json(file)
    except UserError:  # absent or damaged: nothing is remembered
        return {}


def remember(file: Path, pictures: Mapping[str, str]) -> None:
    """Keep the SHA-256 of each picture of the set by name."""
    write_json(file, dict(pictures))


def tell_work(
    known: Mapping[str, str], present: Mapping[str, str], rebuilt: Sequence[str], *, reused: int, damaged: int
) -> str:
    """Return the line that says what the cache gave, and why the rest was made: names of pictures, rebuilt ones first.

    `known` and `present` are SHA-256 by name, the last time and now; `rebuilt` names pictures with new entries.
    """
    changed = [name for name in rebuilt if name in known and known[name] != present[name]]
    new = [name for name in rebuilt if name not in known]
    again = len(rebuilt) - len(changed) - len(new)
    removed = len(set(known) - set(present))
    why = [f"{_names(changed)} changed"] if changed else []
    why += [f"{_names(new)} new"] if new and known else []
    why += [f"{again} with other settings or damaged"] if again and not damaged else []
    why += [f"{damaged} damaged"] if damaged else []
    reasons = f" ({', '.join(why)})" if why else ""
    gone = f", {removed} removed" if removed else ""
    return f"cache: {reused} reused, {len(rebuilt)} rebuilt{reasons}{gone}"


def tell_changes(known: Mapping[str, str], present: Mapping[str, str]) -> str:
    """Return what was added, removed or changed between two lists of pictures (SHA-256 by name), in words."""
    found = {
        "added": [name for name in present if name not in known],
        "removed": [name for name in known if name not in present],
        "changed": [name for name in present if known.get(name, present[name]) != present[name]],
    }
    parts = [
        f"{len(names)} {'file' if len(names) == 1 else 'files'} {what}: {_names(names)}"
        for what, names in found.items()
        if names
    ]
    return "; ".join(parts) or "the same pictures, with other captions, masks or crops"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
