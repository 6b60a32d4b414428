"""The schema of scores.json and comparison.json: what evaluate writes and report reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from limner.errors import UserError
from limner.rundir import read_json
from limner.spec import Spec

Written = TypeVar("Written", bound=Spec)

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
    unit: Literal["subject", "prompt", "image", "training"]
    """What an independent draw is: a prompt with all its images, or an image where there is but one prompt; of several
    subjects, a subject with all that was made for it; a training, where values belong to no image."""


class Level(Spec):
    """A value to read a score against."""

    name: str
    """Short name: within, between, another_seed, closest_pair, chance."""
    title: str
    """What it is, in words."""
    value: float
    """On the metric's own scale."""
    pairs: int
    """How many pairs of pictures (of a rate: how many cases) stand behind it."""
    is_limit: bool = False
    """Whether an image beyond it is suspect."""


class ImageValue(Spec):
    """The value of one image, and where the image lies."""

    file: str
    """Path inside the folder of the arm's run; the base's images are the first run's."""
    prompt: str
    """Which prompt it was drawn from: set and index, as in "subject/3"."""
    value: float
    """On the metric's own scale; of a distance between sets, the image's share: the mean of the shares is it."""


class ArmScore(Spec):
    """One arm's score in one metric."""

    score: Interval
    """Mean over the images."""
    beyond_limit: int | None
    """How many images lie beyond the metric's limit; null where it has none."""
    images: tuple[ImageValue, ...]
    """Every value behind the mean."""


class Difference(Spec):
    """One arm minus another, over pairs of images of the same prompt and the same initial latents."""

    arm: str
    """A tuned arm."""
    to: str
    """What it is compared with: the base or an earlier tuned arm."""
    score: Interval
    """The mean paired difference, arm minus `to`."""
    p: float | None
    """Two-sided p of the interval: below .05 exactly where it leaves out 0; null where no test is made."""
    p_holm: float | None
    """p after Holm's correction over everything that is claimed; null where nothing is."""
    sign_flip_p: float | None
    """Two-sided permutation test on the means of the units, which assumes no distribution; null where none is made."""
    conclusive: bool
    """True only where the interval excludes 0 with enough independent draws, and a claim outlasts the correction."""
    finding: Finding
    """What may be said."""
    words: str
    """The finding as a sentence."""


class Question(Spec):
    """What was asked of pictures, and of which encoder."""

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
    levels: tuple[Level, ...]
    """Values to read the scores against; over several subjects their means."""


class MetricScore(Question):
    """One question, answered with one encoder, for every arm."""

    key: str
    """kind.encoder"""
    sets: tuple[str, ...]
    """Which sets of prompts it is taken from."""
    relative_to_base: bool
    """Whether the value is itself a difference to the base."""
    is_claimed: bool
    """Whether the verdict claims something from it, so that its tests are corrected for each other."""
    arms: dict[str, ArmScore]
    """Score by arm; the base stands first."""
    differences: tuple[Difference, ...]
    """Every tuned arm to the base, then every pair of tuned arms."""

    def difference(self, arm: str, to: str) -> Difference:
        """Return the difference of two arms that stand in this order."""
        return next(d for d in self.differences if (d.arm, d.to) == (arm, to))


class EncoderInfo(Spec):
    """An encoder that gave scores."""

    name: str
    """As in the keys of the scores."""
    identity: str
    """First 16 hex digits of the SHA-256 of its weights or definition."""
    about: str
    """What it is."""


class RunInfo(Spec):
    """The run behind a tuned arm."""

    name: str
    """Name of its folder."""
    folder: str
    """Its folder, as a path from the folder of this file."""
    settings: dict[str, str | int | float | bool | None]
    """Its recipe's settings, as far as they are not the same in all runs."""


class Design(Spec):
    """What was compared, and under which conditions."""

    arms: tuple[str, ...]
    """The base first."""
    runs: dict[str, RunInfo]
    """The run behind each tuned arm."""
    prompts: dict[str, int]
    """Number of prompts of each set."""
    images: dict[str, int]
    """Number of images of each set, per arm."""
    training_pictures: int
    """Number of pictures of the subject."""
    held_out_pictures: int = 0
    """Number of pictures of the subject that likeness was measured against; 0: against the training pictures."""
    class_pictures: int
    """Number of pictures of others of the class."""
    masked_pictures: int = 0
    """Number of training pictures with a mask."""
    distractors: dict[str, int] = {}
    """Number of pictures of each other subject."""
    settings: dict[str, str | int | float]
    """Sampler settings, equal in all arms."""
    seed: int
    """Seed of the bootstrap and of the permutation test."""
    draws: int
    """Number of bootstrap draws."""


class Scores(Spec):
    """Everything that was measured about one run, or about several that are compared."""

    schema_version: Literal[2] = 2
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


def read_written(kind: type[Written], path: Path, hint: str) -> Written:
    """Return what a file of scores holds; one that is not of this schema is a UserError with `hint` as what to do."""
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}.", hint) from error
