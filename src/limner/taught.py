"""Pictures that a base draws for a few-step adapter to learn from: their prompts, and where they are kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.conflicts import reported_prompts
from limner.drawing import load_base
from limner.errors import UserError
from limner.evaluate.statistics import LEAST_UNITS
from limner.families.load import native_resolution
from limner.files import default_cache
from limner.generate.draw import CAPTIONS, caption_drawn, check_resolution, draw, requests_in_turn
from limner.generate.faults import tell_faults
from limner.pictures.fit import fit_to
from limner.pictures.picture import Picture
from limner.pictures.text import read_text
from limner.prepare.check import Checked, Example
from limner.recipe import Recipe, changed
from limner.rundir import read_json
from limner.seeds import seed_of
from limner.underlying import attach_underlying
from limner.watch import Watch

TEMPLATES = (
    "a photo of a {word}", "a picture of a {word}", "a drawing of a {word}", "a painting of a {word}",
    "a close-up photo of a {word}", "a photo of a small {word}", "a photo of a large {word}", "a sketch of a {word}",
    "a photo of a {word} indoors", "a photo of a {word} outdoors", "a photo of a {word} by the sea",
    "a photo of a {word} in a park", "a bright photo of a {word}", "a dark photo of a {word}",
    "a photo of a red {word}", "a photo of a blue {word}",
)  # fmt: skip
"""What class words are put into; none is a prompt of the comparison's."""
JUDGED = 16
"""At most so many prompts are drawn at a validation, where it is not the user who says which."""


def prompts_of(recipe: Recipe) -> list[str]:
    """Return what the base draws to learn from: the lines of a file, or class words in prompts of many kinds.

    The words are those that were given, else the subject's own and its class.

    Raises:
        UserError: there are none.
    """
    asked, own = recipe.distill, recipe.pictures
    if asked.prompts:
        where = f"distill.prompts={asked.prompts}"
        if not asked.prompts.is_file():
            raise UserError(f"{where}: there is no such file.", "Write a text file with a prompt a line.")
        noun = own.class_noun or ""
        lines = [" ".join(line.split()) for line in read_text(asked.prompts).splitlines()]
        found = [line.replace("{subject}", own.subject).replace("{class_noun}", noun) for line in lines if line]
        if not found:
            raise UserError(f"{where}: holds no prompt.", "Write one a line.")
        return list(dict.fromkeys(found))
    if not (words := _words(recipe)):
        raise UserError(
            "distill: no pictures were given, and nothing says what the base shall draw.",
            'Give a folder of captioned pictures, distill.prompts=FILE (a prompt a line), or distill.words=["dog"].',
        )
    return [template.replace("{word}", word) for template in TEMPLATES for word in words]


def _words(recipe: Recipe) -> tuple[str, ...]:
    """Return the class words: those that were given, else the subject's own and its class."""
    own = recipe.pictures
    return recipe.distill.words or tuple(dict.fromkeys(word for word in (own.subject, own.class_noun) if word))


def with_prompts_to_look_at(recipe: Recipe) -> Recipe:
    """Return the recipe of a run whose base draws what it learns from with prompts for its previews and validations.

    The usual ones ask for a subject. Where there is none, validations get prompts of the kind that is learned from, and
    none of these: lines of the file that are not drawn, or the usual ones with the class words in them. Prompts that
    were given stay.

    Raises:
        UserError: too few prompts are left to judge by, or nothing says what to draw.
    """
    preview, own, asked = recipe.preview, recipe.validation, recipe.distill
    usual, settings = type(own)(), dict[str, Any]()
    has_words = bool(recipe.pictures.token or recipe.pictures.class_noun)
    if recipe.has_subject:
        return recipe
    if preview.every_steps and preview.prompt == type(preview)().prompt and not has_words:
        settings["preview.prompt"] = prompts_of(recipe)[0]
    if own.every_steps and own.prompts == usual.prompts:
        of_words = has_words and not asked.words and not asked.prompts
        settings["validation.prompts"] = _not_learned(usual.prompts) if of_words else _judged(recipe)
        if own.class_prompts == usual.class_prompts:
            settings["validation.class_prompts"] = _not_learned(usual.class_prompts) if of_words else []
    return changed(recipe, settings) if settings else recipe


def _not_learned(prompts: Sequence[str]) -> list[str]:
    """Return those prompts that class words are not put into for the base to draw."""
    return [p for p in prompts if _with_word(p) not in TEMPLATES]


def _with_word(prompt: str) -> str:
    return prompt.replace("{subject}", "{word}").replace("{class_noun}", "{word}")


def _judged(recipe: Recipe) -> list[str]:
    """Return prompts like those that the base draws to learn from, and none of them or of the comparison's."""
    asked, all_of_them, reported = recipe.distill, prompts_of(recipe), reported_prompts(recipe)
    if not asked.prompts:
        own, words = type(recipe.validation)(), _words(recipe)
        new = [_with_word(prompt) for prompt in _not_learned((*own.prompts, *own.class_prompts))]
        pairs = [(i % len(new), (i + i // len(new)) % len(words)) for i in range(len(new) * len(words))]
        filled = dict.fromkeys(new[template].replace("{word}", words[word]) for template, word in pairs)
        return [prompt for prompt in filled if prompt not in reported][:JUDGED]
    left = [prompt for prompt in all_of_them[asked.images :] if prompt not in reported]
    if len(left) < LEAST_UNITS:
        learned, most = min(asked.images, len(all_of_them)), len(all_of_them) - LEAST_UNITS
        fewer = f"set distill.images={most} or fewer, " if most > 0 else ""
        raise UserError(
            f"distill.prompts={asked.prompts}: has {len(all_of_them)} prompts, and {learned} are learned from "
            f"(distill.images={asked.images}), which leaves {len(left)} to validate on.",
            f"Add lines until {LEAST_UNITS} or more are left, {fewer}or give validation.prompts.",
        )
    return left[:: max(1, len(left) // JUDGED)][:JUDGED]


def draw_taught(recipe: Recipe, watch: Watch, *, subject: Path | None = None) -> Path:
    """Draw the pictures with the base, and the subject on it, as `generation` says; return the folder in the cache.

    What is there is not drawn again, and a broken-off folder is continued.

    Raises:
        UserError: nothing says what to draw, or the pictures are spoilt.
    """
    prompts, images = prompts_of(recipe), recipe.distill.images
    if len(prompts) > images:
        watch.say(f"distill.images={images}: of {len(prompts)} prompts the first {images} are drawn")
    family = load_base(recipe, watch)
    if subject:
        attach_underlying(family, subject)
    resolution_px, sampling = check_resolution(family, recipe.resolution), recipe.generation.alone()
    requests = requests_in_turn(prompts, images, "taught")
    key = seed_of("taught", *family.identity.values(), str(family.scheduler_config), resolution_px,
                  sampling.model_dump_json(), str(requests))  # fmt: skip
    out = default_cache() / "taught-pictures" / f"{key:016x}"
    with watch.phase("draw pictures to learn from"):
        made = draw(family, requests, out, sampling=sampling, resolution_px=resolution_px, replace=True,
                    progress=watch.progress, about={"base": recipe.base, "identity": family.identity})  # fmt: skip
    wrong = tell_faults(made, "pictures to learn from", tuned=bool(subject))
    if wrong:
        shutil.rmtree(out)
        raise UserError(wrong, "They would be learned from: set precision=float32, or give pictures.")
    caption_drawn(made)
    return out


def is_whole(folder: Path) -> bool:
    """Tell whether all that was drawn is still there."""
    if not ((folder / "manifest.json").is_file() and (folder / CAPTIONS).is_file()):
        return False
    return all((folder / row["file"]).is_file() for row in read_json(folder / "manifest.json")["images"])


def expected(recipe: Recipe) -> Checked:
    """Return what checking the pictures would find once the base has drawn them: for a plan, which draws nothing."""
    side = recipe.resolution or native_resolution(recipe.base)
    requests = requests_in_turn(prompts_of(recipe), recipe.distill.images, "taught")
    examples = tuple(
        Example(Picture(one.file, Path(one.file)), sha256="", size=(side, side), caption=one.prompt,
                fit=fit_to((side, side), (side, side)))
        for one in requests
    )  # fmt: skip
    return Checked(examples, (), (f"{len(examples)} pictures will be drawn by the base",), side)
