"""Check every picture before anything is loaded: decode all, list every problem at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.errors import UserError
from limner.pictures.captions import read_captions
from limner.pictures.decode import BadPicture, decode_bytes, read_file
from limner.pictures.fit import Fit, enlargement, fit_to
from limner.pictures.folder import Found, find_pictures
from limner.pictures.spec import Pictures, Prior
from limner.prepare.ahead import work_ahead
from limner.prepare.order import Group, Order

Progress = Callable[[int, int], None]
"""Called with (done, all) as work goes on."""


@dataclass(frozen=True)
class Example:
    """One picture with its caption, as training will see it."""

    name: str
    """Unique within the set: the file's name, with its folder when several were given."""
    path: Path
    sha256: str
    """Of the file's bytes."""
    size: tuple[int, int]
    """Width and height when upright."""
    caption: str
    fit: Fit
    repeats: int = 1
    """How often it is seen in one epoch."""


@dataclass(frozen=True)
class Exclusion:
    """A picture that was given and is not used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """What a check found: examples to train on, and everything a user should read first."""

    examples: tuple[Example, ...]
    exclusions: tuple[Exclusion, ...]
    notes: tuple[str, ...]
    """Lines to print, the summary first."""
    resolution_px: int
    """Side of the training square that the shapes were chosen for."""

    @property
    def given(self) -> int:
        """Return how many pictures were found: used ones and exclusions."""
        return len(self.examples) + len(self.exclusions)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Return the buckets in use: width and height of each."""
        return sorted({example.fit.size for example in self.examples})

    def order(self, batch: int) -> Order:
        """Return the order in which the examples are seen, `batch` of them a step."""
        by_repeats: dict[int, list[int]] = {}
        for index, example in enumerate(self.examples):
            by_repeats.setdefault(example.repeats, []).append(index)
        groups = [Group(tuple(members), repeats * len(members)) for repeats, members in sorted(by_repeats.items())]
        shapes = self.shapes
        return Order(groups, [shapes.index(example.fit.size) for example in self.examples], batch)


@dataclass
class _Look:
    """What decoding one file told."""

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    has_alpha: bool = False
    problem: str = ""


def check_pictures(
    paths: Path | Sequence[Path], spec: Pictures, *, resolution_px: int, progress: Progress | None = None
) -> Checked:
    """Decode every picture fully and decide how each is used; the user's files are only read.

    Files that cannot be used are collected into one UserError, or excluded with `spec.skip_bad`.
    Pictures that would have to be enlarged too much are excluded. `resolution_px` is the training square's side.
    """
    found = find_pictures(paths)
    looks = _look_at_all(found, spec, progress)
    _refuse_bad(looks, spec)
    usable = [(name, path) for name, path in found.pictures if not looks[name].problem]
    captions, caption_notes = read_captions(usable, spec)
    examples: list[Example] = []
    exclusions = [Exclusion(name, look.problem) for name, look in looks.items() if look.problem]
    for name, path in usable:
        look = looks[name]
        target = (resolution_px, resolution_px)
        factor = enlargement(look.size, target)
        if factor > spec.max_upscale:
            size = f"{look.size[0]}×{look.size[1]}"
            reason = f"{size}, needs {factor:.1f}× upscale > pictures.max_upscale={spec.max_upscale:g}"
            exclusions.append(Exclusion(name, reason))
            continue
        fit = fit_to(look.size, target)
        examples.append(Example(name, path, look.sha256, look.size, captions[name], fit, spec.repeats))
    if not examples:
        lines = "".join(f"\n  {e.name}  {e.reason}" for e in exclusions)
        raise UserError(f"None of {len(looks)} pictures can be used:{lines}\n", "Add pictures that are large enough.")
    notes = (_summary(exclusions, len(looks)), *found.notes, *caption_notes, *_picture_notes(looks, spec))
    return Checked(tuple(examples), tuple(exclusions), notes, resolution_px)


def check_class_pictures(
    paths: Path | Sequence[Path],
    spec: Pictures,
    prior: Prior,
    *,
    resolution_px: int,
    instance: Path | Sequence[Path] = (),
    progress: Progress | None = None,
) -> Checked:
    """Check the class pictures of prior preservation; each has the prior's prompt as its caption.

    `instance` is where the subject's pictures lie: the two may not be inside one another.
    """
    for own in [instance] if isinstance(instance, Path) else instance:
        for path in [paths] if isinstance(paths, Path) else paths:
            _refuse_nesting(path.resolve(), own.resolve())
    changes = {"caption": prior.caption(spec), "prefix": "", "missing_captions": "template", "repeats": 1}
    checked = check_pictures(paths, spec.model_copy(update=changes), resolution_px=resolution_px, progress=progress)
    named = [example.name for example in checked.examples if spec.token in example.caption.split()]
    if named:
        raise UserError(
            f"{named[0]}: the caption of this class picture contains the trigger {spec.token!r} "
            f"({len(named)} of {len(checked.examples)} do).",
            "Class pictures must not name the subject.",
        )
    return checked


def _refuse_nesting(prior: Path, instance: Path) -> None:
    if prior == instance:
        raise UserError(
            f"{prior}: is both the prior folder and the instance folder.", "Name a folder of class pictures."
        )
    for inner, outer, line in (
        (prior, instance, "prior folder is inside the instance folder"),
        (instance, prior, "instance folder is inside the prior folder"),
    ):
        if outer in inner.parents:
            raise UserError(f"{inner}: the {line} ({outer}).", "Move it beside the other.")


def _look_at_all(found: Found, spec: Pictures, progress: Progress | None) -> dict[str, _Look]:
    def look_at(path: Path) -> _Look:
        look = _Look()
        try:
            data = read_file(path)
            look.sha256 = hashlib.sha256(data).hexdigest()
            decoded = decode_bytes(data, background=spec.alpha, max_megapixels=spec.max_megapixels)
        except BadPicture as bad:
            look.problem = str(bad)
            return look
        look.size, look.notes, look.has_alpha = decoded.rgb.size, decoded.notes, decoded.alpha is not None
        kinds = {"jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "heif": "HEIF", "heic": "HEIF"}
        ending = path.suffix.lower().lstrip(".")
        if kinds.get(ending, ending.upper()) != decoded.format:
            look.notes = (f"is really a {decoded.format} (accepted)", *look.notes)
        return look

    looks: dict[str, _Look] = {}
    for (name, _), look in zip(found.pictures, work_ahead(look_at, [p for _, p in found.pictures]), strict=True):
        looks[name] = look
        if progress:
            progress(len(looks), len(found.pictures))
    return looks


def _refuse_bad(looks: dict[str, _Look], spec: Pictures) -> None:
    bad = {name: look.problem for name, look in looks.items() if look.problem}
    if not bad or (spec.skip_bad and len(bad) < len(looks)):
        return
    width = max(map(len, bad))
    lines = "".join(f"\n  {name:<{width}}  {problem}" for name, problem in bad.items())
    message = f"{len(bad)} of {len(looks)} pictures cannot be used:{lines}\n"
    if len(bad) == len(looks):
        raise UserError(message, "No picture is left.")
    raise UserError(message, "Fix or remove them, or set pictures.skip_bad=true.")


def _summary(exclusions: list[Exclusion], given: int) -> str:
    line = f"{given} given: {given - len(exclusions)} used"
    if not exclusions:
        return line
    return f"{line}, {len(exclusions)} excluded" + "".join(f"\n  {e.name}  {e.reason}" for e in exclusions)


def _picture_notes(looks: dict[str, _Look], spec: Pictures) -> list[str]:
    notes = [f"{name}: {note}" for name, look in looks.items() for note in look.notes]
    see_through = sum(look.has_alpha for look in looks.values())
    if see_through:
        verb = "picture has" if see_through == 1 else "pictures have"
        notes.append(f"{see_through} {verb} transparency; composited on {spec.alpha}")
    return notes
