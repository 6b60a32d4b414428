"""The prompts of the comparison, and those that steps are judged on: with the token, and with the class noun alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from limner.generate.draw import Request, requests_for
from limner.spec import Spec

SCENES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
"""The ten scenes that DreamBooth's protocol asks of living subjects and of objects alike (arXiv:2208.12242)."""

LARGEST_STRENGTH = 4.0


class Evaluation(Spec):
    """What is drawn for the comparison of base and tuned, and how many pictures of each."""

    prompts: tuple[str, ...] = tuple(f"a {{subject}} {scene}" for scene in SCENES)
    """Prompts with "{subject}", which becomes the token and the class noun: fidelity and prompt following.

    Six or more of every kind: nothing is claimed from fewer.
    """
    class_prompts: tuple[str, ...] = (
        "a photo of a {class_noun}",
        "a close-up photo of a {class_noun}",
        "a photo of a {class_noun} in a garden",
        "a photo of a {class_noun} on a table",
        "a photo of a {class_noun} at night",
        "a drawing of a {class_noun}",
    )
    """Prompts with "{class_noun}" alone: does another member of the class stay itself?"""
    other_prompts: tuple[str, ...] = (
        "a photo of a house",
        "a photo of a bowl of fruit",
        "a city street at night",
        "a portrait of a woman",
        "a red car in front of a shop",
        "a lake in the mountains",
    )
    """Prompts about other things: what changed that should not have?"""
    images_per_prompt: int = Field(default=4, ge=1)
    """Pictures for each of `prompts`, per side."""
    images_per_class_prompt: int = Field(default=4, ge=1)
    """Pictures for each of `class_prompts` and `other_prompts`, per side."""
    strengths: tuple[float, ...] = ()
    """Draw the first picture of each of `prompts` at these strengths of the adapter too, such as [0.25, 0.5, 0.75, 1]:
    the report shows how likeness and prompt following change with it."""
    inference_steps: tuple[int, ...] = ()
    """Draw them with these numbers of denoising steps too, such as [4, 8, 25], by the base as well."""
    pictures: Path | None = None
    """Folder of held-out pictures of the subject: likeness is measured against them, not against what was learned."""

    distractors: Path | None = None
    """Folder with a folder of pictures of each of several other subjects, best of the same class: how often is an image
    taken for the subject and not for one of them?"""
    encoders: tuple[str, ...] = ()
    """Who judges, by hub name or folder: ["facebook/dinov2-small", "facebook/dino-vits16",
    "openai/clip-vit-base-patch32"], or "lite0", "colour_histogram", "image_text" (the one inside the embedded base).

    The first that reads no text decides. Empty: those three for real bases as far as they are on this machine, else
    lite0; for the embedded base what comes with it.
    """
    quality: str = ""
    """A model of image quality, by hub name or folder: "yuvalkirstain/PickScore_v1", or a CLIP vision tower with a
    linear head such as "shunk031/aesthetics-predictor-v1-vit-large-patch14". Empty: none is asked."""

    @field_validator("strengths")
    @classmethod
    def _real(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < one <= LARGEST_STRENGTH for one in value):
            raise ValueError(f"a strength must be above 0 and at most {LARGEST_STRENGTH:g}; the base is always drawn")
        return tuple(sorted(set(value)))

    @field_validator("inference_steps")
    @classmethod
    def _countable(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= one <= 1000 for one in value):
            raise ValueError("a number of steps must be from 1 to 1000")
        return tuple(sorted(set(value)))

    @field_validator("pictures", "distractors")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().resolve() if value else None  # a resumed run finds it from any folder

    def requests(self, token: str, class_noun: str) -> list[Request]:
        """Return every picture to draw for one side."""
        return [
            *_subject_requests(self.prompts, token, class_noun, self.images_per_prompt),
            *_class_requests(self.class_prompts, class_noun, self.images_per_class_prompt),
            *requests_for("other", [(p, p) for p in self.other_prompts], range(self.images_per_class_prompt)),
        ]


class Validation(Spec):
    """Pictures drawn and judged during training, of prompts that the comparison never sees: which step is the best?"""

    every_steps: int = Field(default=0, ge=0)
    """Steps between validations; 0 makes none. The base is judged too, and the last step. It changes nothing in the
    training."""
    prompts: tuple[str, ...] = (
        "a picture of a {subject}",
        "a {subject} on top of a white rug",
        "a {subject} with a wheat field in the background",
        "a {subject} with a tree and autumn leaves in the background",
        "a {subject} on top of a dirt road",
        "a {subject} floating on top of water",
        "a {subject} on a sofa",
        "a painting of a {subject}",
    )
    """Prompts with "{subject}": likeness, prompt following, copying. None may be one of the comparison's, with
    the token or without: those are reported, and what was chosen on them would look better than it is. A few-step run
    without a subject is judged on prompts without it; where its base draws what it learns from, they are of that kind,
    and not learned from, unless others are given."""
    class_prompts: tuple[str, ...] = (
        "a {class_noun}",
        "a photo of a {class_noun} indoors",
        "a {class_noun} in a park",
        "a {class_noun} by the sea",
        "a portrait of a {class_noun}",
        "a sketch of a {class_noun}",
    )
    """Prompts with "{class_noun}" alone: how far have others of the class moved from the base's own pictures?"""
    images_per_prompt: int = Field(default=2, ge=1)
    """Pictures for each prompt, at each validation."""
    patience: int = Field(default=0, ge=0)
    """End the run after so many validations in which likeness has not grown while forgetting went on (of a few-step
    run: that came no nearer to the base's many-step pictures, when the last is farther from them); 0 trains all steps.
    The learning rate's schedule is made for all steps, and `checkpoint.choose` finds the best of them anyway."""

    def requests(self, token: str, class_noun: str) -> list[Request]:
        """Return every picture to draw at a validation; without a class noun those that would need one are left out."""
        class_prompts = [prompt for prompt in self.class_prompts if class_noun or "{class_noun}" not in prompt]
        return [
            *_subject_requests(self.prompts, token, class_noun, self.images_per_prompt),
            *_class_requests(class_prompts, class_noun, self.images_per_prompt),
        ]


def _subject_requests(prompts: Sequence[str], token: str, class_noun: str, count: int) -> list[Request]:
    subject = f"{token} {class_noun}".strip()
    filled = [(_fill(p, subject, class_noun), _fill(p, class_noun, class_noun)) for p in prompts]
    return requests_for("subject", filled, range(count))


def _class_requests(prompts: Sequence[str], class_noun: str, count: int) -> list[Request]:
    filled = [_fill(p, class_noun, class_noun) for p in prompts]
    return requests_for("class", [(p, p) for p in filled], range(count))


def _fill(template: str, subject: str, class_noun: str) -> str:
    return template.replace("{subject}", subject).replace("{class_noun}", class_noun)
