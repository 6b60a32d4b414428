"""The schema of course.json: what was judged at steps during training, and which step it speaks for."""

from __future__ import annotations

from limner.metrics.scores import Interval, Question
from limner.spec import Spec


class Curve(Question):
    """One question, answered with one encoder, over the steps."""

    prompts: tuple[str, ...]
    """Which prompt each image was drawn from: set and index, as in "subject/3"."""
    values: dict[int, tuple[float, ...]]
    """By step: the value of each image; step 0 is the base."""
    scores: dict[int, Interval]
    """By step: their mean."""


class Knee(Spec):
    """The step after which likeness grows no more."""

    step: int
    """Which one; where no choice can be made the last that was judged."""
    is_conclusive: bool
    """False where at no step likeness is above the base's by more than its interval, of 99 %."""
    is_growing: bool
    """Whether it is the last step that was judged, so that more steps may give more."""
    waited: int
    """How many later steps were judged without a gain."""
    later_gain: Interval | None
    """Likeness of the best later step, minus that of this one, with its 99 % interval; null where there is none."""
    forgetting: Interval | None
    """Drift of the class at the last step that was judged, minus that of this one, with its 95 % interval; null where
    it is the last, or nothing was drawn of the class."""
    is_forgetting: bool
    """Whether that interval lies above 0."""
    words: str
    """All of it as a sentence."""


class Course(Spec):
    """What the validations of a run found."""

    key: str
    """A hash of what decides the scores: prompts, sampler, base, encoders. Steps of another key cannot be compared."""
    curves: tuple[Curve, ...]
    """Likeness, prompt following, forgetting, copying; those that could be judged."""
    knee: Knee | None
    """Null as long as only the base was judged."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the steps that were judged, the base's 0 first."""
        return tuple(self.curves[0].values) if self.curves else ()
