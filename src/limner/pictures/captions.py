"""Captions: where they are found, how their bytes become text, and what is wrong with them."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from limner.errors import UserError
from limner.pictures.spec import Pictures

SIDECAR_ENDINGS = (".txt", ".caption")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """Read a text file as UTF-8 (a byte order mark is fine) or marked UTF-16/32; anything else is a UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).", "Check its permissions.") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"byte 0x{data[error.start]:02x} at {error.start}"
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise UserError(f"{path}: is not {name} ({what}).", "Save it as UTF-8.") from error
    if "\0" in text:
        raise UserError(f"{path}: is not text (it holds zero bytes).", "Save it as UTF-8.")
    return text


def read_captions(pictures: Sequence[tuple[str, Path]], spec: Pictures) -> tuple[dict[str, str], list[str]]:
    """Return the caption of each picture by name, and lines to print about them.

    All problems of all caption files are collected into one UserError.
    """
    own: dict[str, str] = {}
    endings: Counter[str] = Counter()
    problems: list[str] = []
    for name, path in pictures:
        try:
            sidecar = _sidecar(path, spec)
            if sidecar is None:
                continue
            text = " ".join(read_text(sidecar).split())
        except UserError as error:
            problems.append(str(error))
            continue
        endings[sidecar.suffix.lower()] += 1
        own[name] = " ".join(f"{spec.fill(spec.prefix)} {spec.fill(text)}".split())
    if problems:
        raise UserError("\n".join(problems))
    return _complete(pictures, own, endings, spec)


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
    pictures: Sequence[tuple[str, Path]], own: dict[str, str], endings: Counter[str], spec: Pictures
) -> tuple[dict[str, str], list[str]]:
    """Give every picture a caption by the policy for missing ones."""
    template = spec.fill(spec.caption)
    missing = [name for name, _ in pictures if name not in own]
    if not own:
        return {name: template for name, _ in pictures}, [f"caption of every picture: {template!r}"]
    found = " and ".join(f"{n} {ending}" for ending, n in sorted(endings.items()))
    notes = [f"captions: {len(own)} of {len(pictures)} from files ({found})"]
    if missing and spec.missing_captions == "error":
        raise UserError(
            f"{len(missing)} of {len(pictures)} pictures have no caption (first: {missing[0]}). "
            f"Found {found} {'file' if len(own) == 1 else 'files'}:",
            "set pictures.caption_ext, or pictures.missing_captions to template or empty.",
        )
    if missing:
        fallback = template if spec.missing_captions == "template" else ""
        notes.append(f"captions: {len(missing)} missing, {fallback!r} is used for them")
        own = own | {name: fallback for name in missing}
    return own, notes
