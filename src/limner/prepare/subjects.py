"""Several subjects in one set: a folder of folders, each named after its token and class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from limner.errors import UserError
from limner.pictures.captions import read_captions
from limner.pictures.folder import Found, entries_of, find_pictures
from limner.pictures.picture import Picture
from limner.pictures.spec import Pictures
from limner.prepare.likeness import similar_pairs


def find_subjects(paths: Path | Sequence[Path]) -> Found:
    """Find the pictures of every subject: each sub-folder is one, named "TOKEN CLASS", such as "sks dog"."""
    places = [paths] if isinstance(paths, Path) else list(paths)
    folders = [folder for place in places if place.is_dir() for folder in subject_folders(place)]
    if len(folders) < 2:
        raise UserError(
            f"{places[0] if places else 'pictures'}: has {len(folders)} sub-folders, and pictures.subjects=true "
            "takes each for a subject.",
            "Make one folder for each, such as 'sks dog' and 'ohwx cat', or set pictures.subjects=false.",
        )
    pictures: list[Picture] = []
    notes: list[str] = []
    for folder in folders:
        found = find_pictures(folder)
        named = [replace(p, name=f"{folder.name}/{p.name}", subject=folder.name) for p in found.pictures]
        pictures += named
        notes.append(f"subject {folder.name!r}: {len(named)} {'picture' if len(named) == 1 else 'pictures'}")
        notes += [f"{folder.name}: {note}" for note in found.notes]
    refuse_colliding_tokens([folder.name for folder in folders])
    return Found(tuple(pictures), tuple(notes))


def subject_folders(place: Path) -> list[Path]:
    """Return the sub-folders that are subjects, by name; what begins with a dot, an underscore or @ is none."""
    return [f for f in entries_of(place) if f.is_dir() and not f.name.startswith((".", "_", "@"))]


def spec_of(subject: str, spec: Pictures) -> Pictures:
    """Return the settings with a subject's own token and class noun."""
    token, _, noun = subject.partition(" ")
    return spec.model_copy(update={"token": token, "class_noun": noun or spec.class_noun})


def read_subject_captions(pictures: Sequence[Picture], spec: Pictures) -> tuple[dict[str, str], list[str]]:
    """Return the caption of each picture by name, each subject's with its own words."""
    captions: dict[str, str] = {}
    notes: list[str] = []
    for subject in dict.fromkeys(picture.subject for picture in pictures):
        own, lines = read_captions([p for p in pictures if p.subject == subject], spec_of(subject, spec))
        captions |= own
        notes += [f"{subject}: {line}" for line in lines]
    return captions, notes


def refuse_shared_pictures(likeness: Mapping[str, int], subject: Mapping[str, str]) -> None:
    """Refuse a picture that two subjects have: each would be taught the other's look; both are by a picture's name."""
    shared = [(a, b) for a, b in similar_pairs(likeness) if subject[a] != subject[b]]
    if shared:
        lines = "".join(f"\n  {a}  and  {b}" for a, b in shared)
        raise UserError(f"{len(shared)} pictures are in two subjects:{lines}\n", "Leave each with one subject.")


def refuse_colliding_tokens(subjects: Sequence[str]) -> None:
    """Refuse subjects with one trigger, or with triggers of which one begins like the other."""
    for first, second in combinations(subjects, 2):
        a, b = first.split()[0], second.split()[0]
        if a == b:
            raise UserError(f"Subjects {first!r} and {second!r}: have the same trigger {a!r}.", "Choose another.")
        short, long = sorted((a, b), key=len)
        if long.startswith(short):
            raise UserError(
                f"Subjects {first!r} and {second!r}: trigger {short!r} is a prefix of the other.", "Choose another."
            )
