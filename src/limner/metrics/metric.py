"""What a metric is: one number per image, seen with one encoder, and the levels to read it against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limner.metrics.scores import Better, Level
from limner.spec import Spec

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

    @property
    def prompt_index(self) -> Tensor:
        """Return each row's prompt as a number."""
        names = sorted(set(self.prompt))
        return torch.tensor([names.index(name) for name in self.prompt])


class Metric(Spec, ABC):
    """One question about an arm's images, asked with one encoder.

    A metric's value for an arm is the mean of its per-image values, so that every number leads to its pictures.
    """

    kind: str
    """Which question."""
    encoder: str
    """Name of the encoder that answers it."""

    title: ClassVar[str]
    says: ClassVar[str]
    """One plain sentence: what a high or low value means."""
    better: ClassVar[Better]
    """Which direction is wanted; neither where a change is natural and its size has to be read against a level."""
    sets: ClassVar[tuple[ImageSet, ...]]
    needs_text: ClassVar[bool] = False
    """Whether the encoder must read text too."""
    relative_to_base: ClassVar[bool] = False
    """Whether the value is itself a difference to the base (the base's own value is 0), so that no test is made."""
    least_pictures: ClassVar[int] = 0
    """How many training pictures it needs."""
    least_images_per_prompt: ClassVar[int] = 1

    @property
    def key(self) -> str:
        """Return the name of the score: the question and the encoder that answered it."""
        return f"{self.kind}.{self.encoder}"

    @abstractmethod
    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return the value of each image."""

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return the values to read the score against; `view` is the base's."""
        return ()
