"""Check every picture before anything is loaded: decode all, list every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limner.errors import UserError
from limner.pictures.captions import read_captions
from limner.pictures.fit import Fit, Size, buckets_for, enlargement, fit_to, nearest_bucket
from limner.pictures.folder import Found, find_pictures
from limner.pictures.picture import Picture
from limner.pictures.spec import Pictures, Prior
from limner.prepare.ahead import work_ahead
from limner.prepare.facts import Look, Looks
from limner.prepare.likeness import similar_pairs
from limner.prepare.look import look_at
from limner.prepare.order import Group, Order
from limner.prepare.subjects import find_subjects, read_subject_captions, refuse_shared_pictures

Progress = Callable[[int, int], None]
"""Called with (done, all) as work goes on."""

BLURRED = 0.75
"""Pictures whose blur measure is above this are pointed out."""
MOST_LINES = 12
"""How many lines of one kind are printed."""
FINEST_STEP_PX = 16
USUAL_STEP_PX = 64


@dataclass(frozen=True)
class Example:
    """One picture with its caption, as training will see it."""

    picture: Picture
    sha256: str
    """Of the file's bytes."""
    size: Size
    """Width and height when upright."""
    caption: str
    fit: Fit
    mask_sha256: str = ""
    """Of the mask file's bytes; empty where there is none."""
    likeness: int = 0
    repeats: int = 1
    """How often it is seen in one epoch."""

    @property
    def name(self) -> str:
        """Return the picture's name, unique within the set."""
        return self.picture.name

    @property
    def path(self) -> Path:
        """Return the picture's file."""
        return self.picture.path


@dataclass(frozen=True)
class Exclusion:
    """A picture that was given and is not used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Bucket:
    """One size of the grid and the pictures in it."""

    size: Size
    count: int
    lost_share: float
    """Mean share of the pictures' area that their crops take away, in [0, 1)."""
    most_lost: tuple[str, float]
    """The picture that loses most, and how much."""
    scales: tuple[float, float]
    """Smallest and largest factor by which its pictures are resized."""


@dataclass(frozen=True)
class Checked:
    """What a check found: examples to train on, and everything a user should read first."""

    examples: tuple[Example, ...]
    exclusions: tuple[Exclusion, ...]
    notes: tuple[str, ...]
    """Lines to print, the summary first."""
    resolution_px: int
    """Side of the training square that the shapes were chosen for."""
    held_out: Checked | None = None
    """Pictures of the subject that are kept from training, for likeness to be measured against."""
    weight: float = 1.0
    """Weight of each picture's loss."""

    @property
    def given(self) -> int:
        """Return how many pictures were found: used ones and exclusions."""
        return self.num_pictures + len(self.exclusions)

    @property
    def num_pictures(self) -> int:
        """Return how many pictures are used; one that is seen at several resolutions counts once."""
        return len({example.name for example in self.examples})

    @property
    def shapes(self) -> list[Size]:
        """Return the buckets in use: width and height of each."""
        return sorted({example.fit.size for example in self.examples})

    @property
    def buckets(self) -> list[Bucket]:
        """Return the buckets in use with what is known of their pictures."""
        return [_bucket(shape, [e for e in self.examples if e.fit.size == shape]) for shape in self.shapes]

    def order(self, batch: int) -> Order:
        """Return the order in which the examples are seen, `batch` of them a step; subjects equally often."""
        alike: dict[tuple[str, int], list[int]] = {}
        for index, example in enumerate(self.examples):
            subject = example.picture.subject
            alike.setdefault((subject, 0 if subject else example.repeats), []).append(index)
        most = max(len(members) for members in alike.values()) * self.examples[0].repeats
        groups = [
            Group(tuple(members), most if subject else repeats * len(members))
            for (subject, repeats), members in sorted(alike.items())
        ]
        number = {shape: i for i, shape in enumerate(self.shapes)}
        return Order(groups, [number[example.fit.size] for example in self.examples], batch)


def check_pictures(
    paths: Path | Sequence[Path],
    spec: Pictures,
    *,
    resolution_px: int,
    step_px: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Decode every picture fully and decide how each is used; the user's files are only read.

    Files that cannot be used are collected into one UserError, or excluded with `spec.skip_bad`.
    Pictures that would have to be enlarged too much are excluded. `resolution_px` is the training square's side;
    the sides of other shapes are multiples of `step_px` (64, or 16 for small bases). With a `cache` folder, files
    that were decoded once are only hashed the next time.
    """
    found = find_subjects(paths) if spec.subjects else find_pictures(paths)
    looked = look_at_all(found, spec, cache=cache, progress=progress)
    checked = sort_out(looked, spec, resolution_px=resolution_px, step_px=step_px)
    if spec.subjects or not spec.token or any(spec.names_token(example.caption) for example in checked.examples):
        return checked
    note = f"no caption names {spec.token!r}: pictures.prefix='{spec.token}, ' puts it before each"
    return replace(checked, notes=(*checked.notes, note))


def sort_out(looked: Looked, spec: Pictures, *, resolution_px: int, step_px: int | None = None) -> Checked:
    """Decide how each picture that was looked at is used; see check_pictures."""
    found, looks = looked.found, looked.looks
    _refuse_bad(looks, spec)
    usable = [picture for picture in found.pictures if not looks[picture.name].problem]
    if spec.subjects:
        likeness = {picture.name: looks[picture.name].likeness for picture in usable}
        refuse_shared_pictures(likeness, {picture.name: picture.subject for picture in usable})
    captions, caption_notes = (read_subject_captions if spec.subjects else read_captions)(usable, spec)
    grids = _grids(spec, resolution_px, step_px)
    examples: list[Example] = []
    exclusions = [Exclusion(name, look.problem) for name, look in looks.items() if look.problem]
    for picture in usable:
        found_examples, refusal = _examples_of(picture, looks[picture.name], captions[picture.name], spec, grids)
        examples += found_examples
        exclusions += refusal
    if not examples:
        lines = "".join(f"\n  {e.name}  {e.reason}" for e in exclusions)
        raise UserError(f"None of {len(looks)} pictures can be used:{lines}\n", "Add pictures that are large enough.")
    notes = (_summary(exclusions, len(looks)), *found.notes, *caption_notes, *_picture_notes(looks, spec))
    checked = Checked(tuple(examples), tuple(exclusions), notes, resolution_px)
    return Checked(checked.examples, checked.exclusions, (*notes, *_bucket_notes(checked)), resolution_px)


def _grids(spec: Pictures, resolution_px: int, step_px: int | None) -> list[list[Size]]:
    """Return the grid of shapes of every resolution, the recipe's first."""
    sides = dict.fromkeys((resolution_px, *spec.extra_resolutions))
    step = step_px or (USUAL_STEP_PX if resolution_px >= 4 * USUAL_STEP_PX else FINEST_STEP_PX)
    for side in spec.extra_resolutions:
        if side <= 0 or side % step:
            raise UserError(
                f"pictures.extra_resolutions: {side} is not a multiple of {step}.",
                f"Use e.g. {max(1, round(side / step)) * step}.",
            )
    return [buckets_for(side, step) if spec.buckets else [(side, side)] for side in sides]


def _examples_of(
    picture: Picture, look: Look, caption: str, spec: Pictures, grids: list[list[Size]]
) -> tuple[list[Example], list[Exclusion]]:
    """Return a picture's example at every resolution, or why it is left out: too small for the first of them."""
    examples: list[Example] = []
    for grid in grids:
        target = nearest_bucket(look.size, grid)
        factor = enlargement(look.size, target)
        if factor > spec.max_upscale:
            if examples:
                continue
            size = f"{look.size[0]}×{look.size[1]}"
            reason = f"{size}, needs {factor:.1f}× upscale > pictures.max_upscale={spec.max_upscale:g}"
            return [], [Exclusion(picture.name, reason)]
        examples.append(
            Example(
                picture=picture,
                sha256=look.sha256,
                size=look.size,
                caption=caption,
                fit=fit_to(look.size, target, look.centre),
                mask_sha256=look.mask_sha256,
                likeness=look.likeness,
                repeats=spec.repeats * picture.repeats,
            )
        )
    return examples, []


def check_class_pictures(
    paths: Path | Sequence[Path],
    spec: Pictures,
    prior: Prior,
    *,
    resolution_px: int,
    instance: Path | Sequence[Path] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Check the class pictures of prior preservation; those without a caption get the first of the prior's prompts.

    `instance` is where the subject's pictures lie: the two may not be inside one another.
    """
    for own in [instance] if isinstance(instance, Path) else instance:
        for path in [paths] if isinstance(paths, Path) else paths:
            _refuse_nesting(path.resolve(), own.resolve())
    changes = {"caption": prior.captions(spec)[0], "prefix": "", "missing_captions": "template", "repeats": 1}
    changes |= {"subjects": False, "extra_resolutions": (), "captions_file": None}
    class_spec = spec.model_copy(update=changes)
    looked = look_at_all(find_pictures(paths), class_spec, cache=cache, progress=progress)
    checked = sort_out(looked, class_spec, resolution_px=resolution_px)
    named = [example.name for example in checked.examples if spec.names_token(example.caption)]
    if named:
        raise UserError(
            f"{named[0]}: the caption of this class picture contains the trigger {spec.token!r} "
            f"({len(named)} of {len(checked.examples)} do).",
            "Class pictures must not name the subject.",
        )
    return replace(checked, weight=prior.weight)


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


@dataclass(frozen=True)
class Looked:
    """Pictures that were found, with the facts of each by name."""

    found: Found
    looks: dict[str, Look]


def look_at_all(found: Found, spec: Pictures, *, cache: Path | None = None, progress: Progress | None = None) -> Looked:
    """Decode every picture, several at a time."""
    known = None if cache is None else Looks(cache)
    looks: dict[str, Look] = {}
    try:
        ahead = work_ahead(lambda picture: look_at(picture, spec, known), found.pictures)
        for picture, look in zip(found.pictures, ahead, strict=True):
            looks[picture.name] = look
            if progress:
                progress(len(looks), len(found.pictures))
    finally:
        if known is not None:
            known.close()
    return Looked(found, looks)


def _refuse_bad(looks: dict[str, Look], spec: Pictures) -> None:
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


def _picture_notes(looks: dict[str, Look], spec: Pictures) -> list[str]:
    notes = _few([f"{name}: {note}" for name, look in looks.items() for note in look.notes])
    see_through = sum(look.has_alpha for look in looks.values())
    if see_through:
        has = "picture has" if see_through == 1 else "pictures have"
        use = "the loss counts only where opaque" if spec.alpha == "mask" else f"composited on {spec.alpha}"
        notes.append(f"{see_through} {has} transparency: {use}")
    masks = sum(bool(look.mask_sha256) for look in looks.values())
    if masks:
        notes.append(f"{masks} of {len(looks)} pictures have a mask: the loss counts only where it is white")
    first_with: dict[str, str] = {}
    same = [n for n, look in looks.items() if look.sha256 and first_with.setdefault(look.sha256, n) != n]
    notes += _few([f"{name}: is the same file as {first_with[looks[name].sha256]}" for name in same])
    pairs = similar_pairs({name: look.likeness for name, look in looks.items()})
    near = [(a, b) for a, b in pairs if looks[a].sha256 != looks[b].sha256]
    notes += _few([f"{second}: is nearly the same picture as {first}" for first, second in near])
    blurred = [f"{name}: looks blurred ({look.blur:.2f})" for name, look in looks.items() if look.blur > BLURRED]
    return notes + _few(blurred)


def _few(lines: list[str]) -> list[str]:
    """Return the first lines of one kind, and how many more there are."""
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"... and {more} more of this kind"]


def _bucket(shape: Size, examples: list[Example]) -> Bucket:
    worst = max(examples, key=lambda e: e.fit.lost_share)
    scales = [example.fit.resized[0] / example.size[0] for example in examples]
    mean_loss = sum(example.fit.lost_share for example in examples) / len(examples)
    return Bucket(shape, len(examples), mean_loss, (worst.name, worst.fit.lost_share), (min(scales), max(scales)))


def _bucket_notes(checked: Checked) -> list[str]:
    """Draw the table of buckets: nothing is squashed, and what the crops take away is said."""
    rows = ["shape        pictures   cropped away (mean, most)        resized by"]
    for bucket in checked.buckets:
        name, most = bucket.most_lost
        size = f"{bucket.size[0]}×{bucket.size[1]}"
        loss = f"{bucket.lost_share:6.1%}  {most:6.1%} {name[:16]}"
        low, high = bucket.scales
        rows.append(f"{size:<12} {bucket.count:>8}   {loss:<32} ×{low:.2f} to ×{high:.2f}")
    return ["\n".join(rows)]
