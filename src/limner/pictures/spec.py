"""Settings `pictures.*` and `prior.*` of a recipe: what is read from the folders, and what goes with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from PIL import ImageColor
from pydantic import Field, field_validator

from limner.errors import UserError
from limner.spec import Spec


class Pictures(Spec):
    """How the pictures of the subject or style become examples."""

    token: str = "sks"
    """The rare word that stands for the subject in captions and prompts; "" for few steps of no subject."""

    class_noun: str | None = None
    """What the subject is an instance of: "dog", "teapot". Used in captions and class prompts."""

    subjects: bool = False
    """Take every sub-folder for a subject of its own, named after its token and class ("sks dog"); each subject is
    seen equally often, however many pictures it has."""

    caption: str = "a photo of {token} {class_noun}"
    """Caption of a picture that has none of its own; {token} and {class_noun} are filled in."""

    templates: tuple[str, ...] = ()
    """Further captions of such a picture: each step shows one of them all, and the word is learned, not the phrase."""

    prefix: str = ""
    """Put in front of every caption that was read from a file, e.g. "sks, "; {token} and {class_noun} are filled in."""

    missing_captions: Literal["error", "template", "empty"] = "error"
    """What to do when some pictures have a caption of their own and others have none."""

    captions_file: Path | None = None
    """Read captions from this .jsonl or .csv (columns file_name and text), wherever it lies, and nowhere else."""

    caption_ext: str | None = None
    """Read captions only from files with this ending, e.g. ".txt"; by default .txt and .caption are looked for."""

    caption_dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the rows, in [0, 1], whose caption is replaced by the empty one."""

    shuffle_tags: int = Field(default=0, ge=0, le=64)
    """Show comma-separated captions in up to this many different orders; 0 keeps them as written."""

    keep_first: int = Field(default=1, ge=0)
    """How many tags at the front stay where they are when tags are shuffled."""

    skip_bad: bool = False
    """Leave out files that cannot be used, and record them, instead of stopping."""

    alpha: str = "white"
    """Colour behind transparent parts, a name or #rrggbb; or "mask": the loss counts only where it is opaque."""

    masks: bool = True
    """Use `NAME-mask.png` beside a picture, where there is one: the loss counts only where it is white."""

    buckets: bool = True
    """Keep the shape of pictures, as far as a grid of sizes allows; off crops every picture to a square."""

    extra_resolutions: tuple[int, ...] = ()
    """Show each picture at these sides (in pixels) too, where it is large enough; each counts as an example."""

    crop: Literal["centre", "subject"] = "centre"
    """What a crop keeps in its middle; "subject" is the mask, else what stands out from its surroundings."""

    max_megapixels: float = Field(default=200.0, gt=0)
    """Pictures with more pixels than this (in millions) are refused: they would fill the memory."""

    max_upscale: float = Field(default=4.0, ge=1.0)
    """Pictures that would have to be enlarged by more than this factor are left out, and listed."""

    flip: bool = False
    """Show each picture mirrored half of the time. Off by default: it destroys asymmetric subjects."""

    repeats: int = Field(default=1, ge=1)
    """How often each picture is seen in one epoch."""

    workers: int = Field(default=2, ge=0, le=64)
    """How many threads fetch the coming batches while one is trained on; 0 fetches each when it is needed. It changes
    nothing but the time."""

    @field_validator("caption_ext")
    @classmethod
    def _ending(cls, value: str | None) -> str | None:
        if value is not None and not (value.startswith(".") and len(value) > 1):
            raise ValueError(f"{value!r} is not a file ending; write it with its dot, such as '.txt'")
        return value

    @field_validator("alpha")
    @classmethod
    def _colour(cls, value: str) -> str:
        try:
            ImageColor.getrgb("white" if value == "mask" else value)
        except ValueError:
            raise ValueError(f"{value!r} is not a colour; write a name such as 'white', '#rrggbb', or 'mask'") from None
        return value

    @property
    def subject(self) -> str:
        """Return what a prompt calls the subject: its token and its class noun, as far as there are any."""
        return " ".join(word for word in (self.token, self.class_noun) if word)

    @property
    def background(self) -> str:
        """Return the colour behind transparent parts."""
        return "white" if self.alpha == "mask" else self.alpha

    def fill(self, template: str) -> str:
        """Return a caption template with the token and the class noun filled in, and single blanks."""
        filled = template.replace("{token}", self.token).replace("{class_noun}", self.class_noun or "")
        return " ".join(filled.split())

    def names_token(self, text: str) -> bool:
        """Tell whether a text has the token as a word of its own."""
        return bool(self.token) and re.search(rf"(?<!\w){re.escape(self.token)}(?!\w)", text) is not None


class Prior(Spec):
    """Prior preservation: class pictures that keep the class from turning into the subject."""

    enabled: bool = False
    """Train on class pictures beside the subject's, as many class rows as instance rows a step."""

    weight: float = Field(default=1.0, ge=0.0)
    """Weight of a class picture's loss; an instance picture has 1."""

    count: int = Field(default=32, ge=1)
    """How many class pictures are made by the base when no folder of them is given."""

    teacher: bool = False
    """Let the base teach the class pictures: the target is what it predicts for them, not the noise that was added."""

    prompts: tuple[str, ...] = Field(default=("a photo of a {class_noun}",), min_length=1)
    """Prompts and captions of the class pictures, in turn; {class_noun} is filled in. Only what they say is kept of the
    class: with "a photo of a dog" alone, "a red dog" may still turn into the subject."""

    @property
    def active(self) -> bool:
        """Return whether class pictures take part: a weight of 0 is the same as off."""
        return self.enabled and self.weight > 0

    def captions(self, pictures: Pictures) -> list[str]:
        """Return the class pictures' prompts with the class noun filled in; the token may not be in them."""
        if any("{class_noun}" in prompt for prompt in self.prompts) and not pictures.class_noun:
            raise UserError(
                "prior.enabled=true needs to know the class, and pictures.class_noun is not set.",
                "Set e.g. pictures.class_noun=dog, or write prior.prompts out.",
            )
        prompts = [pictures.fill(prompt) for prompt in self.prompts]
        for prompt in prompts:
            if pictures.names_token(prompt):
                raise UserError(
                    f"prior.prompts: {prompt!r} contains the trigger {pictures.token!r}.",
                    "Class pictures must not name it.",
                )
        return prompts
