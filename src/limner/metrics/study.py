"""The schema of study.json: what a comparison over subjects and training seeds found, and what it could have found."""

from __future__ import annotations

from typing import Literal

from limner.metrics.scores import Difference, EncoderInfo, Interval, Question
from limner.spec import Spec

BudgetKind = Literal["own", "steps", "time", "memory"]
DELTAS = (0.05, 0.03, 0.02)
"""The differences that the table of power speaks about."""


class ArmBudget(Spec):
    """What one arm's share of the budget came to."""

    steps: int
    """Steps of every training of the arm."""
    step_seconds: float | None = None
    """Seconds of a step as the probe measured them; null where nothing was measured."""
    class_seconds: float | None = None
    """Seconds that its class pictures were counted with; 0 without a prior, null where nothing was measured."""


class Budget(Spec):
    """What was equal for all arms."""

    kind: BudgetKind = "own"
    """own: each arm's own recipe; steps: as many updates; time: as many seconds, class pictures included; memory: one
    ceiling."""
    amount: str = ""
    """How much, with its unit; empty for `own`."""
    arms: dict[str, ArmBudget] = {}
    """What that was for each arm."""

    @property
    def words(self) -> str:
        """Return the budget as a sentence."""
        return {
            "own": "Each arm trained as its own recipe says: the budgets are not equal.",
            "steps": f"Every arm trained for {self.amount}.",
            "time": f"Every arm trained for {self.amount}, class pictures included; a measured pace made steps of it.",
            "memory": f"Every arm was made to fit into {self.amount}.",
        }[self.kind]


class SubjectInfo(Spec):
    """One subject of the study."""

    name: str
    """Name of its folder."""
    comparisons: dict[str, str]
    """By training seed: its comparison.json, as a path from the folder of this file."""
    training_pictures: int
    """Number of its pictures."""
    held_out_pictures: int
    """Number of its pictures that likeness was measured against; 0: against the training pictures."""


class Spread(Spec):
    """Standard deviations of a paired difference, level by level; null where a level was not repeated."""

    subject: float | None
    """Between subjects, beyond what the levels below make of it."""
    training: float | None
    """Between training seeds of one subject."""
    prompt: float | None
    """Between prompts of one subject, the same in all its trainings."""
    image: float | None
    """Between images of one prompt, from their initial noise, the same in all trainings."""
    rest: float | None
    """Between images of one prompt in one training; with a single seed that of the images is in it."""


class Power(Spec):
    """Which difference this design can see, and what it takes to see others: power 80 %, level 5 %, one comparison."""

    spread: Spread
    """What it is computed from."""
    detectable: float | None
    """The smallest true difference that would be found in 4 of 5 such studies."""
    subjects: dict[str, int | None]
    """By difference: how many subjects it takes, all else as it is; null where nobody can tell or 1,000 are not
    enough."""
    prompts: dict[str, int | None]
    """By difference: how many prompts it takes, all else as it is; null where 1,000 are not enough."""


class StudyDifference(Difference):
    """One arm minus another over subjects, training seeds, prompts and images, always pair by pair."""

    subjects: dict[str, float]
    """The mean difference of each subject."""
    needed: str
    """What it would take to tell, as a sentence; empty where nothing is open."""
    power: Power | None
    """What the design can see here; null where nothing is tested."""


class StudyArm(Spec):
    """One arm's score in one metric."""

    score: Interval
    """Mean over all subjects."""
    subjects: dict[str, float]
    """Each subject's mean over its trainings."""


class StudyMetric(Question):
    """One question, answered with one encoder, for every arm."""

    key: str
    """kind.encoder"""
    relative_to_base: bool
    """Whether the value is itself a difference to the base."""
    is_claimed: bool
    """Whether the verdict claims something from it, so that its tests are corrected for each other."""
    arms: dict[str, StudyArm]
    """Score by arm; the base stands first."""
    differences: tuple[StudyDifference, ...]
    """Every tuned arm to the base, then every pair of tuned arms."""

    def difference(self, arm: str, to: str) -> StudyDifference:
        """Return the difference of two arms that stand in this order."""
        return next(d for d in self.differences if (d.arm, d.to) == (arm, to))


class StudyDesign(Spec):
    """What was compared, and under which conditions."""

    arms: tuple[str, ...]
    """The base first."""
    subjects: tuple[SubjectInfo, ...]
    """Every subject."""
    seeds: tuple[int, ...]
    """Training seeds, the same for every subject and arm."""
    prompts: dict[str, int]
    """Number of prompts of each set."""
    images: dict[str, int]
    """Number of images of each set, per arm, subject and training seed."""
    unit: Literal["subject", "prompt", "image", "training"]
    """What the intervals take for an independent draw of the first metric."""
    budget: Budget
    """What was equal for all arms."""
    settings: dict[str, str | int | float]
    """Sampler settings, equal in all arms."""
    seed: int
    """Seed of the bootstrap and of the permutation test."""
    draws: int
    """Number of bootstrap draws."""


class Study(Spec):
    """Everything that a comparison over subjects and training seeds found; study.csv holds every value behind it."""

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning."""
    design: StudyDesign
    """What was compared."""
    encoders: tuple[EncoderInfo, ...]
    """Who saw."""
    metrics: tuple[StudyMetric, ...]
    """The answers."""
    limits: tuple[str, ...]
    """What this design cannot tell, in sentences."""
    skipped: dict[str, str]
    """Metrics that could not be taken for every subject and seed: key, and why."""

    def find(self, kind: str) -> StudyMetric | None:
        """Return the first score of a kind."""
        return next((m for m in self.metrics if m.kind == kind), None)
