"""Held-out pictures of the subject: what likeness is measured against must not have been learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limner.errors import UserError
from limner.pictures.folder import find_pictures
from limner.pictures.spec import Pictures
from limner.prepare.check import Checked, look_at_all, sort_out
from limner.prepare.likeness import shared_pictures


def with_held_out(train: Checked, folder: Path, spec: Pictures, *, cache: Path | None = None) -> Checked:
    """Check the held-out pictures as training pictures are checked, and add them.

    Their captions are read where they are beside them; the others get the template, and several subjects' play no part.

    A picture that training has too, the same file or nearly the same picture, is a UserError that names the pair.
    """
    own = as_pictures_alone(spec)
    looked = look_at_all(find_pictures(folder), own, cache=cache)
    held_out = sort_out(looked, own, resolution_px=train.resolution_px)
    _refuse_leaks(train, held_out)
    return replace(train, held_out=held_out)


def as_pictures_alone(spec: Pictures) -> Pictures:
    """Return the settings of pictures that are only looked at: of one subject, unmasked, captioned by the template."""
    changes = {"caption": "a photo", "prefix": ""} if spec.subjects else {}
    changes |= {"missing_captions": "template", "captions_file": None}
    changes |= {"subjects": False, "extra_resolutions": (), "masks": False}
    return spec.model_copy(update=changes)


def _refuse_leaks(train: Checked, held_out: Checked) -> None:
    file_of = {example.sha256: example.name for example in train.examples}
    same = [(file_of[e.sha256], e.name) for e in held_out.examples if e.sha256 in file_of]
    near = shared_pictures(
        {example.name: example.likeness for example in train.examples},
        {example.name: example.likeness for example in held_out.examples},
    )
    lines = {f"\n  {b}  is the same file as {a} of training" for a, b in same}
    lines |= {f"\n  {b}  is nearly the same picture as {a} of training" for a, b in near if (a, b) not in same}
    if lines:
        held = len({b for _, b in (*same, *near)})
        raise UserError(
            f"evaluation.pictures: {held} of {held_out.num_pictures} held-out pictures were learned from, so likeness "
            f"to them would prove nothing:{''.join(sorted(lines))}\n",
            "Leave each on one side.",
        )
