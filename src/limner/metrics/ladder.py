"""The schema of ladder.json: scores of the same prompts at several strengths and numbers of steps."""

from __future__ import annotations

from typing import Literal

from limner.metrics.scores import Better, ImageValue, Interval
from limner.spec import Spec

ARMS = BASE, FEW_STEPS, SUBJECT, BOTH = "base", "few steps", "subject", "subject, few steps"
"""The models of a few-step run: without anything, with the few-step adapter, the subject beneath it, and both."""


class Place(Spec):
    """A strength of the adapter (0: the base) and a number of denoising steps."""

    strength: float
    steps: int
    arm: str = ""
    """Which model of a few-step run; "" where strength says it all."""

    @property
    def name(self) -> str:
        """Return the name of its folder of pictures."""
        if self.arm:
            return f"{self.arm.replace(', ', '-').replace(' ', '-')}x{self.steps}"
        return f"{self.strength:g}x{self.steps}"

    @property
    def order(self) -> tuple[int, float, int]:
        """Return what places are sorted by: model, strength, steps."""
        return ARMS.index(self.arm) if self.arm in ARMS else 0, self.strength, self.steps


class RungScore(Spec):
    """One metric at one place."""

    score: Interval
    """Mean over the prompts, one image of each."""
    images: tuple[ImageValue, ...]
    """Every value behind it."""


class Rung(Spec):
    """Everything measured at one place."""

    place: Place
    """Where."""
    scores: dict[str, RungScore]
    """By metric."""


class LadderMetric(Spec):
    """A question that was asked at every place."""

    key: str
    """kind.encoder"""
    title: str
    """The question's name for a reader."""
    better: Better
    """Which direction is wanted."""


class Ladder(Spec):
    """Scores over strengths and numbers of steps, of one run."""

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning."""
    has_strength: bool
    """Whether what was trained can be scaled; a whole model and a learned word cannot."""
    prompts: tuple[str, ...]
    """What was drawn, one image each."""
    metrics: tuple[LadderMetric, ...]
    """The questions."""
    rungs: tuple[Rung, ...]
    """By strength, then by steps."""

    def at(self, strength: float, steps: int, arm: str = "") -> Rung | None:
        """Return what was measured at a place."""
        return next((r for r in self.rungs if r.place == Place(strength=strength, steps=steps, arm=arm)), None)

    @property
    def rows(self) -> tuple[tuple[str, float], ...]:
        """Return every model and strength, in their order."""
        return tuple(dict.fromkeys((rung.place.arm, rung.place.strength) for rung in self.rungs))

    @property
    def has_arms(self) -> bool:
        """Tell whether several models were drawn, as of a few-step run."""
        return any(rung.place.arm for rung in self.rungs)

    @property
    def strengths(self) -> tuple[float, ...]:
        """Return the strengths, the base's 0 first."""
        return tuple(sorted({rung.place.strength for rung in self.rungs}))

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the numbers of steps."""
        return tuple(sorted({rung.place.steps for rung in self.rungs}))
