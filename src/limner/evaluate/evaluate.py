"""The evaluate stage: one run or several in, scores out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.errors import UserError
from limner.evaluate.claims import corrected, differences
from limner.evaluate.encoders import default_encoders
from limner.evaluate.images import TUNED, Arm, ArmImage, check_runs, read_arms, read_pictures
from limner.evaluate.look import Progress, Seen, look
from limner.evaluate.names import Setting, arm_names, read_recipe, settings_apart
from limner.evaluate.statistics import DRAWS, interval
from limner.metrics.encoder import ImageEncoder, TextImageEncoder
from limner.metrics.metric import Metric, Question, View
from limner.metrics.scores import ArmScore, Design, EncoderInfo, ImageValue, MetricScore, RunInfo, Scores
from limner.metrics.standard import standard_metrics
from limner.rundir import RunDir, write_json


@dataclass(frozen=True)
class Material:
    """What is compared: every arm's images, pictures of the subject and of others of the class."""

    arms: tuple[Arm, ...]
    """The base first."""
    subject: tuple[Path, ...]
    class_pictures: tuple[Path, ...]
    held_out: tuple[Path, ...]


def evaluate(
    runs: Sequence[RunDir],
    out: Path,
    *,
    encoders: Sequence[ImageEncoder] | None = None,
    metrics: Sequence[Metric] | None = None,
    seed: int = 0,
    batch: int = 32,
    progress: Progress = lambda done, total, what: None,
) -> Scores:
    """Score the tuned arm of each run against the base and against one another; write `out`, return what it holds.

    Without `encoders` those that need no download look; without `metrics` the standard questions are asked.

    Raises:
        UserError: images are missing, or arms were made in a way that forbids a comparison.
    """
    recipes = [read_recipe(run) for run in runs]
    material = _gather(runs, arm_names(recipes) if len(runs) > 1 else [TUNED])
    encoders = default_encoders(material.arms[0].base) if encoders is None else encoders
    every = [image for arm in material.arms for image in arm.images]
    paths = [*(image.path for image in every), *material.subject, *material.class_pictures, *material.held_out]
    prompts = [image.plain_prompt for image in every]
    seen = {e.name: look(e, paths, prompts, batch=batch, progress=progress) for e in encoders}
    taken: list[MetricScore] = []
    skipped: dict[str, str] = {}
    for metric in standard_metrics(encoders) if metrics is None else metrics:
        encoder = next((e for e in encoders if e.name == metric.encoder), None)
        reason = (
            _why_not(metric.question, material, encoder) if encoder else f"no encoder named {metric.encoder} was given"
        )
        if reason:
            skipped[metric.key] = reason
        else:
            is_first = all(score.kind != metric.question.kind for score in taken)
            taken.append(_score(metric, material, seen[metric.encoder], seed, is_first=is_first))
    scores = Scores(
        design=_design(material, settings_apart(recipes), out.parent, seed),
        encoders=tuple(EncoderInfo(name=e.name, identity=e.identity, about=e.about) for e in encoders),
        metrics=corrected(taken),
        skipped=skipped,
    )
    write_json(out, scores.model_dump(mode="json"))
    return scores


def _gather(runs: Sequence[RunDir], names: Sequence[str]) -> Material:
    """Read what the runs hold; class pictures and held-out ones are those of the first run that has any."""
    check_runs(runs)
    arms = read_arms(runs, names)
    subject = read_pictures(runs[0].pictures)
    if not subject:
        raise UserError(f"{runs[0].pictures}: holds no training pictures.", "Make them with: limner train PICTURES")
    others = (read_pictures(run.class_pictures) for run in runs)
    held_out = (read_pictures(run.held_out) for run in runs)
    return Material(arms, subject, next(filter(None, others), ()), next(filter(None, held_out), ()))


def _why_not(question: Question, material: Material, encoder: ImageEncoder) -> str:
    """Return why a question cannot be put to an encoder, or nothing."""
    rows = _rows(question, material.arms[0])
    if question.needs_text and not isinstance(encoder, TextImageEncoder):
        return f"{encoder.name} reads no text"
    if not rows:
        return f"no images were made for the prompts of: {', '.join(question.sets)}"
    if len(material.subject) < question.least_pictures:
        return f"it takes {question.least_pictures} training pictures, and there is {len(material.subject)}"
    if min(Counter(_prompt(row) for row in rows).values()) < question.least_images_per_prompt:
        return f"it takes {question.least_images_per_prompt} images of each prompt"
    return ""


def _score(metric: Metric, material: Material, seen: Seen, seed: int, *, is_first: bool) -> MetricScore:
    """Take one metric for every arm, and the paired differences of every two arms; the first of a kind may claim."""
    question = metric.question
    base = _rows(question, material.arms[0])
    prompts = [_prompt(row) for row in base]
    views = {arm.name: _view(_rows(question, arm), base, material, seen) for arm in material.arms}
    values = {name: question.per_image(view).double().numpy() for name, view in views.items()}
    levels = metric.levels(views[material.arms[0].name])
    limit = next((level.value for level in levels if level.is_limit), None)
    arms = {
        arm.name: ArmScore(
            score=interval(values[arm.name], prompts, seed=seed),
            beyond_limit=None if limit is None else int((values[arm.name] > limit).sum()),
            images=tuple(
                ImageValue(file=str(row.path.relative_to(arm.run.path)), prompt=_prompt(row), value=float(value))
                for row, value in zip(_rows(question, arm), values[arm.name], strict=True)
            ),
        )
        for arm in material.arms
    }
    return MetricScore(
        key=metric.key,
        kind=question.kind,
        encoder=metric.encoder,
        title=question.title,
        says=question.says,
        better=question.better,
        sets=question.sets,
        relative_to_base=question.relative_to_base,
        levels=levels,
        is_claimed=question.is_claimed and is_first,
        arms=arms,
        differences=differences(question, values, prompts, seed=seed),
    )


def _view(rows: list[ArmImage], base: list[ArmImage], material: Material, seen: Seen) -> View:
    return View(
        images=seen.rows([row.path for row in rows]),
        base=seen.rows([row.path for row in base]),
        prompt=tuple(_prompt(row) for row in rows),
        subject=seen.rows(material.subject),
        class_pictures=seen.rows(material.class_pictures),
        text=seen.text_rows([row.plain_prompt for row in rows]),
        held_out=seen.rows(material.held_out) if material.held_out else None,
    )


def _rows(question: Question, arm: Arm) -> list[ArmImage]:
    return [image for image in arm.images if image.set in question.sets]


def _prompt(image: ArmImage) -> str:
    return f"{image.set}/{image.prompt_index}"


def _design(material: Material, apart: Sequence[dict[str, Setting]], folder: Path, seed: int) -> Design:
    """Return what was compared; `folder` is where the scores will lie."""
    base, *tuned = material.arms
    sets = Counter(image.set for image in base.images)
    runs = {
        arm.name: RunInfo(
            name=arm.run.path.resolve().name,
            folder=os.path.relpath(arm.run.path.resolve(), folder.resolve()),
            settings=settings,
        )
        for arm, settings in zip(tuned, apart, strict=True)
    }
    return Design(
        arms=tuple(arm.name for arm in material.arms),
        runs=runs,
        prompts={name: len({image.prompt_index for image in base.images if image.set == name}) for name in sets},
        images=dict(sets),
        training_pictures=len(material.subject),
        held_out_pictures=len(material.held_out),
        class_pictures=len(material.class_pictures),
        settings=base.settings,
        seed=seed,
        draws=DRAWS,
    )
