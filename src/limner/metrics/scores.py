"""The schema of scores.json: what evaluate writes and report reads."""

from __future__ import annotations

from typing import Literal

from limner.spec import Spec

Better = Literal["higher", "lower", "neither"]
Finding = Literal["better", "worse", "higher", "lower", "no difference", "not conclusive", "not tested"]


class Interval(Spec):
    """A mean with its 95 % interval."""

    mean: float
    """Mean over all images."""
    low: float | None
    """Lower end of the 95 % interval; null where one image or prompt leaves nothing to estimate it from."""
    high: float | None
    """Upper end of the 95 % interval."""
    n_images: int
    """How many images (or pairs of images) stand behind the mean."""
    n_units: int
    """How many independent draws the interval counts."""
    unit: Literal["prompt", "image"]
    """What an independent draw is: a prompt with all its images, or an image where there is but one prompt."""


class Level(Spec):
    """A value to read a score against."""

    name: str
    """Short name: within, between, another_seed, closest_pair."""
    title: str
    """What it is, in words."""
    value: float
    """On the metric's own scale."""
    pairs: int
    """How many pairs of pictures stand behind it."""
    is_limit: bool = False
    """Whether an image beyond it is suspect."""


class ImageValue(Spec):
    """The value of one image, and where the image lies."""

    file: str
    """Path inside the run folder."""
    prompt: str
    """Which prompt it was drawn from: set and index, as in "subject/3"."""
    value: float
    """On the metric's own scale."""


class ArmScore(Spec):
    """One arm's score in one metric."""

    score: Interval
    """Mean over the images."""
    beyond_limit: int | None
    """How many images lie beyond the metric's limit; null where it has none."""
    images: tuple[ImageValue, ...]
    """Every value behind the mean."""


class Difference(Spec):
    """A tuned arm minus the base, over pairs of images of the same prompt and the same initial latents."""

    arm: str
    """The tuned arm."""
    score: Interval
    """The mean paired difference."""
    p: float | None
    """Sign-flip permutation test on the means of the units, two-sided; null where no test is made."""
    conclusive: bool
    """True only where the interval excludes 0 and there are enough independent draws."""
    finding: Finding
    """What the interval allows to say."""
    words: str
    """The finding as a sentence."""


class MetricScore(Spec):
    """One question, answered with one encoder, for every arm."""

    key: str
    """kind.encoder"""
    kind: str
    """Which question."""
    encoder: str
    """Who answered."""
    title: str
    """The question's name for a reader."""
    says: str
    """What a high or low value means."""
    better: Better
    """Which direction is wanted; neither where a change is natural and its size has to be read against a level."""
    sets: tuple[str, ...]
    """Which sets of prompts it is taken from."""
    relative_to_base: bool
    """Whether the value is itself a difference to the base."""
    levels: tuple[Level, ...]
    """Values to read the score against."""
    arms: dict[str, ArmScore]
    """Score by arm; the base stands first."""
    differences: tuple[Difference, ...]
    """One for each tuned arm."""


class EncoderInfo(Spec):
    """An encoder that gave scores."""

    name: str
    """As in the keys of the scores."""
    identity: str
    """First 16 hex digits of the SHA-256 of its weights or definition."""
    about: str
    """What it is."""


class Design(Spec):
    """What was compared, and under which conditions."""

    arms: tuple[str, ...]
    """The base first."""
    prompts: dict[str, int]
    """Number of prompts of each set."""
    images: dict[str, int]
    """Number of images of each set, per arm."""
    training_pictures: int
    """Number of pictures of the subject."""
    class_pictures: int
    """Number of pictures of others of the class."""
    settings: dict[str, str | int | float]
    """Sampler settings, equal in all arms."""
    seed: int
    """Seed of the bootstrap and of the permutation test."""
    draws: int
    """Number of bootstrap draws."""


class Scores(Spec):
    """Everything that was measured about one run."""

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning."""
    design: Design
    """What was compared."""
    encoders: tuple[EncoderInfo, ...]
    """Who saw."""
    metrics: tuple[MetricScore, ...]
    """The answers."""
    skipped: dict[str, str]
    """Metrics that could not be taken: key, and why."""

    def find(self, kind: str, encoder: str | None = None) -> MetricScore | None:
        """Return the first score of a kind, by a given encoder if one is named."""
        return next((m for m in self.metrics if m.kind == kind and encoder in (None, m.encoder)), None)
