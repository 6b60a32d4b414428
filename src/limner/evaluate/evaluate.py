"""The evaluate stage: folders of images in, scores.json out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limner.errors import UserError
from limner.evaluate.encoders import default_encoders
from limner.evaluate.images import Arm, ArmImage, read_arms, read_pictures
from limner.evaluate.look import Progress, Seen, look
from limner.evaluate.statistics import DRAWS, finding, interval, sign_flip_p
from limner.evaluate.words import difference_in_words
from limner.metrics.encoder import ImageEncoder, TextImageEncoder
from limner.metrics.metric import Metric, View
from limner.metrics.scores import ArmScore, Design, Difference, EncoderInfo, ImageValue, MetricScore, Scores
from limner.metrics.standard import standard_metrics
from limner.rundir import RunDir, write_json


@dataclass(frozen=True)
class Material:
    """What is compared: every arm's images, the training pictures, pictures of others of the class."""

    run: Path
    arms: tuple[Arm, ...]
    """The base first."""
    subject: tuple[Path, ...]
    class_pictures: tuple[Path, ...]


def evaluate(
    run: RunDir,
    *,
    encoders: Sequence[ImageEncoder] | None = None,
    metrics: Sequence[Metric] | None = None,
    seed: int = 0,
    batch: int = 32,
    progress: Progress = lambda done, total, what: None,
) -> Scores:
    """Score every tuned arm of a run against its base, write scores.json and return what it holds.

    Without `encoders` those that need no download look; without `metrics` the standard questions are asked.

    Raises:
        UserError: images are missing, or arms were made in a way that forbids a comparison.
    """
    material = Material(
        run=run.path,
        arms=read_arms(run),
        subject=read_pictures(run.pictures),
        class_pictures=read_pictures(run.class_pictures),
    )
    if not material.subject:
        raise UserError(f"{run.pictures}: holds no training pictures.", "Make them with: limner train PICTURES")
    encoders = default_encoders(material.arms[0].base) if encoders is None else encoders
    every = [image for arm in material.arms for image in arm.images]
    paths = [*(image.path for image in every), *material.subject, *material.class_pictures]
    prompts = [image.plain_prompt for image in every]
    seen = {e.name: look(e, paths, prompts, batch=batch, progress=progress) for e in encoders}
    taken: list[MetricScore] = []
    skipped: dict[str, str] = {}
    for metric in standard_metrics(encoders) if metrics is None else metrics:
        encoder = next((e for e in encoders if e.name == metric.encoder), None)
        reason = _why_not(metric, material, encoder)
        if reason:
            skipped[metric.key] = reason
        else:
            taken.append(_score(metric, material, seen[metric.encoder], seed))
    scores = Scores(
        design=_design(material, seed),
        encoders=tuple(EncoderInfo(name=e.name, identity=e.identity, about=e.about) for e in encoders),
        metrics=tuple(taken),
        skipped=skipped,
    )
    write_json(run.scores, scores.model_dump(mode="json"))
    return scores


def _why_not(metric: Metric, material: Material, encoder: ImageEncoder | None) -> str:
    """Return why a metric cannot be taken, or nothing."""
    rows = _rows(metric, material.arms[0])
    if encoder is None:
        return f"no encoder named {metric.encoder} was given"
    if metric.needs_text and not isinstance(encoder, TextImageEncoder):
        return f"{encoder.name} reads no text"
    if not rows:
        return f"no images were made for the prompts of: {', '.join(metric.sets)}"
    if len(material.subject) < metric.least_pictures:
        return f"it takes {metric.least_pictures} training pictures, and there is {len(material.subject)}"
    if min(Counter(_prompt(row) for row in rows).values()) < metric.least_images_per_prompt:
        return f"it takes {metric.least_images_per_prompt} images of each prompt"
    return ""


def _score(metric: Metric, material: Material, seen: Seen, seed: int) -> MetricScore:
    """Take one metric for every arm, and every tuned arm's paired difference to the base."""
    base = _rows(metric, material.arms[0])
    prompts = [_prompt(row) for row in base]
    views = {arm.name: _view(_rows(metric, arm), base, material, seen) for arm in material.arms}
    values = {name: metric.per_image(view).double().numpy() for name, view in views.items()}
    levels = metric.levels(views[material.arms[0].name])
    limit = next((level.value for level in levels if level.is_limit), None)
    arms = {
        arm.name: ArmScore(
            score=interval(values[arm.name], prompts, seed=seed),
            beyond_limit=None if limit is None else int((values[arm.name] > limit).sum()),
            images=tuple(
                ImageValue(file=str(row.path.relative_to(material.run)), prompt=_prompt(row), value=float(value))
                for row, value in zip(_rows(metric, arm), values[arm.name], strict=True)
            ),
        )
        for arm in material.arms
    }
    reference, *tuned = [arm.name for arm in material.arms]
    return MetricScore(
        key=metric.key,
        kind=metric.kind,
        encoder=metric.encoder,
        title=metric.title,
        says=metric.says,
        better=metric.better,
        sets=metric.sets,
        relative_to_base=metric.relative_to_base,
        levels=levels,
        arms=arms,
        differences=tuple(_difference(metric, n, values[n] - values[reference], prompts, seed) for n in tuned),
    )


def _difference(metric: Metric, arm: str, values: np.ndarray, prompts: list[str], seed: int) -> Difference:
    """Return what the paired differences of one arm to the base allow to say."""
    score = interval(values, prompts, seed=seed)
    found = finding(score, better=metric.better)
    tested = not metric.relative_to_base
    if not tested and values.any():
        found = "not tested"
    return Difference(
        arm=arm,
        score=score,
        p=sign_flip_p(values, prompts, seed=seed) if tested else None,
        conclusive=found in ("better", "worse", "higher", "lower"),
        finding=found,
        words=difference_in_words(score, found),
    )


def _view(rows: list[ArmImage], base: list[ArmImage], material: Material, seen: Seen) -> View:
    return View(
        images=seen.rows([row.path for row in rows]),
        base=seen.rows([row.path for row in base]),
        prompt=tuple(_prompt(row) for row in rows),
        subject=seen.rows(material.subject),
        class_pictures=seen.rows(material.class_pictures),
        text=seen.text_rows([row.plain_prompt for row in rows]),
    )


def _rows(metric: Metric, arm: Arm) -> list[ArmImage]:
    return [image for image in arm.images if image.set in metric.sets]


def _prompt(image: ArmImage) -> str:
    return f"{image.set}/{image.prompt_index}"


def _design(material: Material, seed: int) -> Design:
    """Return what was compared."""
    images = material.arms[0].images
    sets = Counter(image.set for image in images)
    return Design(
        arms=tuple(arm.name for arm in material.arms),
        prompts={name: len({image.prompt_index for image in images if image.set == name}) for name in sets},
        images=dict(sets),
        training_pictures=len(material.subject),
        class_pictures=len(material.class_pictures),
        settings=material.arms[0].settings,
        seed=seed,
        draws=DRAWS,
    )
