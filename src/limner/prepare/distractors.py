"""Pictures of other subjects: made as the model would see them, to find out whether the subject is recognised."""

from __future__ import annotations

from collections.abc import Collection
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


def save_distractors(
    folder: Path, spec: Pictures, out: Path, *, learned: Collection[str], resolution_px: int, cache: Path | None = None
) -> list[str]:
    """Check other subjects' pictures as training pictures are checked, and write each subject's into a folder of `out`.

    A folder with a file that was learned from (`learned`, SHA-256) is the subject's own and left out: its name is
    returned.

    Raises:
        UserError: a picture cannot be used, or no other subject is left.
    """
    own = as_pictures_alone(spec)
    left_out: list[str] = []
    subjects = find_distractors(folder)
    for subject in subjects:
        looked = look_at_all(find_pictures(subject), own, cache=cache)
        checked = sort_out(looked, own, resolution_px=resolution_px)
        if any(example.sha256 in learned for example in checked.examples):
            left_out.append(subject.name)
        else:
            save_pictures(checked, own, out / subject.name)
    if len(left_out) == len(subjects):
        raise UserError(
            f"evaluation.distractors={folder}: holds only the subject ({', '.join(left_out)}).", "Add other subjects."
        )
    return left_out
