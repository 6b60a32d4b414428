"""What a metric is: a question with one number per image for an answer, and the encoder that gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limner.metrics.scores import Better, Level

ImageSet = Literal["subject", "class", "other"]
"""Prompts with the token; prompts with the class noun and no token; prompts about something else."""


@dataclass(frozen=True)
class View:
    """What one encoder saw of one arm: its images of a metric's sets, row by row, and what they are compared with."""

    images: Float[Tensor, "images dim"]
    base: Float[Tensor, "images dim"]
    """The base's image of the same prompt and the same initial latents."""
    prompt: tuple[str, ...]
    """Which prompt each row was drawn from: rows with equal names belong together."""
    subject: Float[Tensor, "pictures dim"]
    """The subject's training pictures."""
    class_pictures: Float[Tensor, "others dim"]
    """Pictures of others of the class; no rows where there are none."""
    text: Float[Tensor, "images dim"] | None = None
    """The plain prompt of each row; None where the encoder reads no text."""
    held_out: Float[Tensor, "held_out dim"] | None = None
    """Pictures of the subject that were not learned from; None where there are none."""
    others: tuple[Float[Tensor, "_ dim"], ...] = ()
    """Pictures of other subjects, each subject's by themselves."""
    foreground: Float[Tensor, "images masked"] | None = None
    """How well each image holds the foreground of each training picture that has a mask; None where none has."""
    own_foreground: Float[Tensor, "masked masked"] | None = None
    """The same of the pictures with masks among themselves."""

    @property
    def sitter(self) -> Float[Tensor, "pictures dim"]:
        """Return the pictures that likeness is measured against: held-out ones, else the training pictures."""
        return self.subject if self.held_out is None else self.held_out

    @property
    def prompt_index(self) -> Tensor:
        """Return each row's prompt as a number."""
        names = sorted(set(self.prompt))
        return torch.tensor([names.index(name) for name in self.prompt])


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about an arm's images.

    Its answer for an arm is the mean over the images, so that every number leads to its pictures.
    """

    kind: str
    """Short name."""
    title: str
    says: str
    """One plain sentence: what a high or low value means."""
    better: Better
    """Which direction is wanted; neither where a change is natural and its size has to be read against a level."""
    sets: tuple[ImageSet, ...]
    per_image: Callable[[View], Tensor]
    """The value of each image."""
    levels: tuple[Callable[[View], Level | None], ...] = ()
    """The values to read the answer against, taken of the base's view; None where there is nothing to take one from."""
    is_claimed: bool = False
    """Whether the verdict claims something from it; the other answers are descriptions."""
    needs_text: bool = False
    """Whether the encoder must read text too."""
    needs_masks: bool = False
    """Whether training pictures must have masks, and the encoder see patches."""
    needs_others: bool = False
    """Whether pictures of other subjects must be there."""
    relative_to_base: bool = False
    """Whether the value is itself a difference to the base (the base's own value is 0), so that no test is made."""
    is_rate: bool = False
    """Whether the value of an image is 1 or 0, and the answer a share."""
    least_pictures: int = 0
    """How many training pictures it needs."""
    least_images_per_prompt: int = 1
    least_images: int = 1
    """How many images of each arm it needs."""


@dataclass(frozen=True)
class Metric:
    """A question and the encoder that answers it."""

    question: Question
    encoder: str
    """Name of the encoder."""

    @property
    def key(self) -> str:
        """Return the name of the score."""
        return f"{self.question.kind}.{self.encoder}"

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return the values to read the score against; `view` is the base's."""
        return tuple(level for take in self.question.levels if (level := take(view)) is not None)
