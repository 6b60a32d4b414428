"""The schema of course.json: what was judged at steps during training, and which step it speaks for."""

from __future__ import annotations

from limner.metrics.few_steps import TEACHER_DISTANCE
from limner.metrics.scores import Interval, Question
from limner.spec import Spec


class Curve(Question):
    """One question, answered with one encoder, over the steps."""

    prompts: tuple[str, ...]
    """Which prompt each image was drawn from: set and index, as in "subject/3"."""
    values: dict[int, tuple[float, ...]]
    """By step: the value of each image; step 0 is the base, of a few-step run in many steps."""
    scores: dict[int, Interval]
    """By step: their mean."""
    start: tuple[float, ...] = ()
    """Of a few-step run: the value of each image of the base in few steps, drawn as the adapter is."""


class Knee(Spec):
    """The step after which likeness grows no more; of a few-step run, nearness to the base's many-step pictures.

    What is said of likeness below holds for nearness, the distance with its sign changed; the first step that was
    judged stands in the place of the base.
    """

    step: int
    """Which one; where no choice can be made the last that was judged."""
    is_conclusive: bool
    """False where at no step likeness is above the base's by more than its interval, of 99 %; of a few-step run true
    too where the last step is farther away than this one by more than that."""
    is_growing: bool
    """Whether it is the last step that was judged, so that more steps may give more."""
    waited: int
    """How many later steps were judged without a gain."""
    later_gain: Interval | None
    """Likeness of the best later step, minus that of this one, with its 99 % interval; null where there is none."""
    forgetting: Interval | None
    """Drift of the class (of a few-step run: the distance) at the last step that was judged, minus that of this one,
    with its 95 % interval; null where it is the last, or nothing was drawn of the class."""
    is_forgetting: bool
    """Whether that interval lies above 0."""
    words: str
    """All of it as a sentence."""
    held: int = 0
    """The step whose checkpoint has to stay, because it is or may yet be taken; 0 as long as that is none."""


class Course(Spec):
    """What the validations of a run found."""

    key: str
    """A hash of what decides the scores: prompts, sampler, base, encoders. Steps of another key cannot be compared."""
    curves: tuple[Curve, ...]
    """Likeness, prompt following, forgetting, copying; of a few-step run the distance to the base's many-step pictures,
    prompt following, likeness where there is a subject, sharpness. Those that could be judged."""
    knee: Knee | None
    """Null as long as only the base was judged."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the steps that were judged, the base's 0 first."""
        return tuple(self.curves[0].values) if self.curves else ()

    @property
    def of_few_steps(self) -> bool:
        """Tell whether it is a few-step run's, whose step 0 is what the others are to come near."""
        return any(curve.kind == TEACHER_DISTANCE.kind for curve in self.curves)
