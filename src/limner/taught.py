"""Pictures that a base draws for a few-step adapter to learn from: their prompts, and where they are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from limner.drawing import load_base
from limner.errors import UserError
from limner.families.load import native_resolution
from limner.files import default_cache
from limner.generate.draw import CAPTIONS, caption_drawn, check_resolution, draw, requests_in_turn
from limner.generate.faults import tell_faults
from limner.pictures.fit import fit_to
from limner.pictures.picture import Picture
from limner.pictures.text import read_text
from limner.prepare.check import Checked, Example
from limner.recipe import Recipe
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


def prompts_of(recipe: Recipe) -> list[str]:
    """Return what the base draws to learn from: the lines of a file, or class words in prompts of many kinds.

    The words are those that were given, else the subject's own and its class.

    Raises:
        UserError: there are none.
    """
    asked, pictures = recipe.distill, recipe.pictures
    noun = pictures.class_noun or ""
    subject = " ".join(word for word in (pictures.token, noun) if word)
    if asked.prompts:
        where = f"distill.prompts={asked.prompts}"
        if not asked.prompts.is_file():
            raise UserError(f"{where}: there is no such file.", "Write a text file with a prompt a line.")
        lines = [" ".join(line.split()) for line in read_text(asked.prompts).splitlines()]
        found = [line.replace("{subject}", subject).replace("{class_noun}", noun) for line in lines if line]
        if not found:
            raise UserError(f"{where}: holds no prompt.", "Write one a line.")
        return list(dict.fromkeys(found))
    words = asked.words or tuple(dict.fromkeys(word for word in (subject, noun) if word))
    if not words:
        raise UserError(
            "distill: no pictures were given, and nothing says what the base shall draw.",
            'Give a folder of captioned pictures, distill.prompts=FILE (a prompt a line), or distill.words=["dog"].',
        )
    return [template.replace("{word}", word) for template in TEMPLATES for word in words]


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
