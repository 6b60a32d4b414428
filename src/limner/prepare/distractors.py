"""Pictures of other subjects: made as the model would see them, to find out whether the subject is recognised."""

from __future__ import annotations

from pathlib import Path

from limner.errors import UserError
from limner.pictures.folder import entries_of, find_pictures
from limner.pictures.spec import Pictures
from limner.prepare.check import look_at_all, sort_out
from limner.prepare.held_out import as_pictures_alone
from limner.prepare.save import save_pictures


def find_distractors(folder: Path) -> list[Path]:
    """Return the folders of other subjects inside `folder`, each with at least one picture.

    Raises:
        UserError: there is no such folder, it holds no folders, or one of them holds no pictures.
    """
    if not folder.is_dir():
        raise UserError(
            f"evaluation.distractors={folder}: there is no such folder.", "Name a folder with a folder of each subject."
        )
    folders = [path for path in entries_of(folder) if path.is_dir() and not path.name.startswith(".")]
    if not folders:
        raise UserError(
            f"evaluation.distractors={folder}: holds no folders.", "Put the pictures of each other subject into one."
        )
    for subject in folders:
        find_pictures(subject)
    return folders


def save_distractors(folder: Path, spec: Pictures, out: Path, *, resolution_px: int, cache: Path | None = None) -> None:
    """Check other subjects' pictures as training pictures are checked, and write each subject's into a folder."""
    own = as_pictures_alone(spec)
    for subject in find_distractors(folder):
        looked = look_at_all(find_pictures(subject), own, cache=cache)
        save_pictures(sort_out(looked, own, resolution_px=resolution_px), own, out / subject.name)
