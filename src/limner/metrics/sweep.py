"""The schema of sweep.json: what became of every variant of a sweep, and which one is taken."""

from __future__ import annotations

from typing import Literal

from limner.metrics.scores import Interval, Question
from limner.spec import Spec

Standing = Literal["taken", "more alike", "less alike", "not conclusive", "not compared"]


class Swept(Spec):
    """One variant."""

    settings: dict[str, str]
    """The settings that set it apart, as they were written."""
    run: str
    """The folder of its run, as a path from the folder of this file."""
    step: int | None
    """The step that its result is of, and that was judged; null where it was not."""
    seconds: float | None
    """Its share of the training, up to that step."""
    bytes: int | None
    """The size of its files."""
    to_taken: Interval | None
    """Its likeness minus that of the variant that is taken, with the 99 % interval; null where there is none."""
    standing: Standing
    """How its likeness stands to that of the variant that is taken; where none is, to the base's."""
    why_not: str = ""
    """Why it was not judged."""


class SweptScore(Spec):
    """One variant's score in one question."""

    score: Interval
    """The mean over the images."""


class SweptMetric(Question):
    """One question, answered with one encoder, for the base and every variant that was judged."""

    key: str
    """kind.encoder"""
    arms: dict[str, SweptScore]
    """By variant; the base stands first."""


class Sweep(Spec):
    """What a sweep found."""

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning."""
    base: str
    """What the user called the base."""
    prompts: dict[str, int]
    """Number of prompts of each set."""
    images_per_prompt: int
    """Images of each prompt, per variant."""
    variants: dict[str, Swept]
    """By name; those that were judged first, from the one that forgets least."""
    metrics: tuple[SweptMetric, ...]
    """Likeness, prompt following, forgetting, copying; those that could be judged."""
    taken: str | None
    """The variant that is taken; null where no choice can be made."""
    words: tuple[str, ...]
    """Why, in sentences."""
    command: str | None
    """The command that trains the variant that is taken by itself."""

    @property
    def judged(self) -> tuple[str, ...]:
        """Return the variants that were judged."""
        return tuple(name for name, one in self.variants.items() if one.step is not None)

    def find(self, kind: str) -> SweptMetric | None:
        """Return the scores of a kind."""
        return next((metric for metric in self.metrics if metric.kind == kind), None)
