"""Captions: where they are found, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from limner.errors import UserError
from limner.pictures.metadata import Metadata, read_metadata_file
from limner.pictures.picture import Picture
from limner.pictures.spec import Pictures
from limner.pictures.text import read_text

SIDECAR_ENDINGS = (".txt", ".caption")


def read_captions(pictures: Sequence[Picture], spec: Pictures) -> tuple[dict[str, str], list[str]]:
    """Return the caption of each picture by name, and lines to print about them.

    A file beside the picture comes first, then what its place says (metadata, shard, folder name), then the
    template. All problems of all caption files are collected into one UserError.
    """
    own: dict[str, str] = {}
    sources: Counter[str] = Counter()
    problems: list[str] = []
    elsewhere = None if spec.captions_file is None else _read_elsewhere(spec.captions_file)
    for picture in pictures:
        try:
            source, text = _own_caption(picture, spec, elsewhere)
        except UserError as error:
            problems.append(str(error))
            continue
        if text is None:
            continue
        sources[source] += 1
        own[picture.name] = " ".join(f"{spec.fill(spec.prefix)} {spec.fill(text)}".split())
    if problems:
        raise UserError("\n".join(problems))
    captions, notes = _complete(pictures, own, sources, spec)
    empty = [picture.name for picture in pictures if picture.name in own and not own[picture.name]]
    if empty:
        notes.append(f"captions: {len(empty)} of them empty (first: {empty[0]})")
    return captions, [*notes, *_orphans(pictures, spec)]


def tags_shuffled(caption: str, orders: int, keep_first: int) -> tuple[str, ...]:
    """Return a caption with its comma-separated tags in up to `orders` different orders, the first `keep_first` fixed.

    The caption as written comes first; the orders depend on the caption only.
    """
    from limner.seeds import seed_of

    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    fixed, loose = tags[:keep_first], tags[keep_first:]
    found = {caption: None}
    for number in range(orders - 1):
        order = sorted(range(len(loose)), key=lambda i: seed_of(caption, number, i))
        found[", ".join([*fixed, *(loose[i] for i in order)])] = None
    return tuple(found)


def _read_elsewhere(path: Path) -> Metadata:
    if not path.is_file():
        raise UserError(f"pictures.captions_file={path}: there is no such file.", "Make one with: limner caption")
    return read_metadata_file(path)


def _own_caption(picture: Picture, spec: Pictures, elsewhere: Metadata | None) -> tuple[str, str | None]:
    """Return where a picture's own caption is from and its text, None when it has none."""
    if elsewhere is not None:
        return elsewhere.path.name, elsewhere.caption(picture.name)
    sidecar = None if picture.reader else _sidecar(picture.path, spec)
    if sidecar is None:
        return picture.caption_from, picture.caption
    text = read_text(sidecar)
    if picture.caption is not None and picture.caption_from.startswith("metadata") and picture.caption != text.strip():
        raise UserError(
            f"{picture.path}: has one caption in {sidecar.name} and another in {picture.caption_from}.", "Remove one."
        )
    return sidecar.suffix.lower(), text


def _sidecar(path: Path, spec: Pictures) -> Path | None:
    """Return the caption file beside a picture: `a.txt` or `a.png.txt` for `a.png`."""
    endings = SIDECAR_ENDINGS if spec.caption_ext is None else (spec.caption_ext,)
    candidates = [path.with_suffix(e) for e in endings] + [path.with_name(path.name + e) for e in endings]
    present = [c for c in candidates if c.is_file()]
    if len(present) > 1:
        names = " and ".join(p.name for p in present)
        raise UserError(f"{path}: has two captions, {names}.", "Remove one, or set pictures.caption_ext.")
    return present[0] if present else None


def _complete(
    pictures: Sequence[Picture], own: dict[str, str], sources: Counter[str], spec: Pictures
) -> tuple[dict[str, str], list[str]]:
    """Give every picture a caption by the policy for missing ones."""
    template = spec.fill(spec.caption)
    missing = [picture.name for picture in pictures if picture.name not in own]
    if not own:
        unread = _count_sidecars(pictures, SIDECAR_ENDINGS) if spec.caption_ext else 0
        if unread:
            raise UserError(
                f"No picture has a {spec.caption_ext} caption, and {unread} have a .txt or .caption file.",
                "Change or remove pictures.caption_ext.",
            )
        return {picture.name: template for picture in pictures}, [f"caption of every picture: {template!r}"]
    found = " and ".join(f"{n} {source}" for source, n in sorted(sources.items()))
    notes = [f"captions: {len(own)} of {len(pictures)} have their own ({found})"]
    if missing and spec.missing_captions == "error":
        raise UserError(
            f"{len(missing)} of {len(pictures)} pictures have no caption (first: {missing[0]}). Found {found}:",
            "set pictures.caption_ext, or pictures.missing_captions to template or empty.",
        )
    if missing:
        fallback = template if spec.missing_captions == "template" else ""
        notes.append(f"captions: {len(missing)} missing (first: {missing[0]}), {fallback!r} is used for them")
        own = own | dict.fromkeys(missing, fallback)
    return own, notes


def _count_sidecars(pictures: Sequence[Picture], endings: Sequence[str]) -> int:
    return sum(any(picture.path.with_suffix(e).is_file() for e in endings) for picture in pictures)


def _orphans(pictures: Sequence[Picture], spec: Pictures) -> list[str]:
    """Say which caption files belong to no picture."""
    endings = SIDECAR_ENDINGS if spec.caption_ext is None else (spec.caption_ext,)
    files = [picture.path for picture in pictures if picture.reader is None]
    belongs = {path.with_suffix("") for path in files} | set(files)
    orphans = sorted(
        file
        for folder in {path.parent for path in files}
        for file in folder.iterdir()
        if file.suffix.lower() in endings and not file.name.startswith(".") and file.with_suffix("") not in belongs
    )
    if not orphans:
        return []
    return [f"captions: {len(orphans)} belong to no picture (first: {orphans[0].name})"]
