"""Is the word for the subject rare? What a tokenizer makes of it, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from limner.errors import UserError
from limner.families.tokenizer import load_tokenizer
from limner.pictures.spec import Pictures
from limner.prepare.check import Checked
from limner.prepare.subjects import spec_of

COMMON_SHARE = 0.8
"""Byte-pair vocabularies list pieces by how early they were merged: the first 80 % are common words and parts."""


def word_notes(base: str, spec: Pictures, checked: Checked, *, learned: bool) -> list[str]:
    """Return lines about the token of every subject, by the tokenizer of the base; no weights are read.

    `learned` says that the token becomes a word of its own, as in Textual Inversion.
    """
    tokenizer = load_tokenizer(base)
    if tokenizer is None:
        return [f"the tokenizer of {base} is not on this machine: whether {spec.token!r} is a rare word is not known"]
    subjects = dict.fromkeys(example.picture.subject for example in checked.examples)
    vocabulary = tokenizer.get_vocab()
    return [
        note
        for own in (spec_of(subject, spec) if subject else spec for subject in subjects)
        for note in token_notes(
            own.token, own.class_noun, pieces=tokenizer.tokenize, vocabulary=vocabulary, learned=learned
        )
    ]


def token_notes(
    token: str,
    class_noun: str | None,
    *,
    pieces: Callable[[str], Sequence[str]],
    vocabulary: Mapping[str, int],
    learned: bool = False,
) -> list[str]:
    """Return lines about a subject's token: a common word already means something, and its meaning is overwritten.

    `pieces` splits text as the base's tokenizer does; `vocabulary` gives the place of each piece. A `learned` token
    must not be in the vocabulary at all.
    """
    if not token.strip() or token.split() != [token]:
        raise UserError(f"pictures.token={token!r}: must be one word.", "Write e.g. pictures.token=sks.")
    found = pieces(token)
    if not found:
        raise UserError(f"pictures.token={token!r}: the tokenizer makes nothing of it.", "Use letters, such as 'sks'.")
    if class_noun and token.lower() in class_noun.lower().split():
        raise UserError(f"pictures.token={token!r}: is also in pictures.class_noun={class_noun!r}.", "Use a rare word.")
    if learned and len(found) == 1:
        raise UserError(
            f"pictures.token={token!r}: is already a word in the base's vocabulary, and would be overwritten.",
            "Use one that is not, such as pictures.token='<subject>'.",
        )
    notes = []
    if len(found) == 1:
        place = vocabulary[found[0]]
        if place < COMMON_SHARE * len(vocabulary):
            notes.append(
                f"the token {token!r} is a common word of the base (place {place:,} of {len(vocabulary):,}): "
                "what it meant will be overwritten; a rare one such as 'sks' or 'ohwx' is better"
            )
    elif len(found) > 3 and not learned:
        notes.append(
            f"the token {token!r} is {len(found)} pieces for the base ({' '.join(found)}): shorter learns faster"
        )
    return notes


def words_of(checked: Checked, spec: Pictures) -> dict[str, str]:
    """Return the subjects' tokens, each with the noun that describes it."""
    if not spec.subjects:
        return {spec.token: spec.class_noun or "thing"}
    own = [spec_of(subject, spec) for subject in dict.fromkeys(e.picture.subject for e in checked.examples)]
    return {one.token: one.class_noun or "thing" for one in own}
