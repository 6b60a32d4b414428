"""Judges the pictures of steps during training, by the questions and the encoders of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from limner.evaluate.images import ArmImage, read_images, read_pictures
from limner.evaluate.knee import find_knee, find_nearest
from limner.evaluate.look import Seen, look
from limner.evaluate.statistics import interval
from limner.metrics.course import Course, Curve
from limner.metrics.encoder import ImageEncoder
from limner.metrics.few_steps import TEACHER_DISTANCE
from limner.metrics.luminance_gradient import LuminanceGradient
from limner.metrics.metric import Metric, View
from limner.metrics.questions import CLASS_DRIFT, COPYING, PROMPT_FOLLOWING, SUBJECT_FIDELITY
from limner.metrics.scores import Level
from limner.metrics.standard import few_step_metrics, first_of, standard_metrics
from limner.rundir import RunDir

QUESTIONS = (SUBJECT_FIDELITY, PROMPT_FOLLOWING, CLASS_DRIFT, COPYING)
"""What is asked at each step of a subject's run: is it the subject, in the scene that was asked for, without forgetting
or copying?"""


class Judges:
    """Judges a run's steps one after the other; what never changes is seen once."""

    def __init__(
        self, encoders: Sequence[ImageEncoder], run: RunDir, base: Path, *, untaught: Mapping[str, Path] | None = None,
        batch: int = 32,
    ) -> None:  # fmt: skip
        """Take the run's own pictures for the subject; `base` is the folder of what the base drew.

        Of a few-step run `untaught` has what the base drew in few steps too, by what to call it; first, drawn as the
        steps are.
        """
        self._untaught = {title: read_images(folder) for title, folder in (untaught or {}).items()}
        self._base, self._batch = read_images(base), batch
        has_subject = not self._untaught or run.sitter != run.pictures  # else it is what the base is asked to draw
        self._subject, self._held_out = (
            read_pictures(folder) if has_subject else () for folder in (run.sitter, run.held_out)
        )
        asked = few_step_metrics(encoders) if self._untaught else _metrics(encoders)
        self._metrics = [metric for metric in asked if self._is_answerable(metric)]
        judges = (*encoders, LuminanceGradient()) if self._untaught else encoders
        self._encoders = {encoder.name: encoder for encoder in judges}
        drawn = [image.path for images in (self._base, *self._untaught.values()) for image in images]
        self._seen = {
            name: self._look(name, [*self._subject, *self._held_out, *drawn])
            for name in dict.fromkeys(metric.encoder for metric in self._metrics)
        }

    def judge(self, folder: Path, step: int, known: Course | None, *, key: str) -> Course:
        """Return the course with this step's pictures judged too."""
        images = read_images(folder)
        before = {curve.kind: curve for curve in known.curves} if known else {}
        curves: list[Curve] = []
        seen: dict[str, Seen] = {}
        for metric in self._metrics:
            if metric.encoder not in seen:
                seen[metric.encoder] = self._look(metric.encoder, [image.path for image in images])
            curves.append(self._curve(metric, images, seen[metric.encoder], step, before.get(metric.question.kind)))
        return concluded(Course(key=key, curves=tuple(curves), knee=None))

    def _curve(self, metric: Metric, images: Sequence[ArmImage], seen: Seen, step: int, before: Curve | None) -> Curve:
        question, own = metric.question, self._seen[metric.encoder]
        view = self._view(metric, images, seen)
        values = question.per_image(view).double()
        score = interval(values.numpy(), view.prompt, seed=0)
        untaught = {
            title: question.per_image(self._view(metric, drawn, own)).double()
            for title, drawn in self._untaught.items()
        }
        levels = (
            Level(name=f"untaught_{number}", title=title, value=float(those.mean()), pairs=len(those))
            for number, (title, those) in enumerate(untaught.items())
        )
        start = next(iter(untaught.values()), torch.zeros(0))
        return Curve(
            kind=question.kind, encoder=metric.encoder, title=question.title, says=question.says,
            better=question.better, levels=(*metric.levels(self._view(metric, self._base, own)), *levels),
            prompts=view.prompt, start=tuple(start.tolist()),
            values={**(before.values if before else {}), step: tuple(values.tolist())},
            scores={**(before.scores if before else {}), step: score},
        )  # fmt: skip

    def _view(self, metric: Metric, images: Sequence[ArmImage], seen: Seen) -> View:
        """Return what a metric's encoder saw of some images, beside what the base drew."""
        own = self._seen[metric.encoder]
        rows, base = ([image for image in some if image.set in metric.question.sets] for some in (images, self._base))
        return View(
            images=seen.rows([row.path for row in rows]),
            base=own.rows([row.path for row in base]),
            prompt=tuple(row.prompt_key for row in rows),
            subject=own.rows(self._subject),
            class_pictures=own.rows([]),
            text=seen.text_rows([row.plain_prompt for row in rows]),
            held_out=own.rows(self._held_out) if self._held_out else None,
        )

    def _is_answerable(self, metric: Metric) -> bool:
        question = metric.question
        drawn = {image.set for image in self._base}
        return len(self._subject) >= question.least_pictures and bool(drawn & {*question.sets})

    def _look(self, encoder: str, paths: Sequence[Path]) -> Seen:
        prompts = [image.plain_prompt for image in self._base]
        return look(self._encoders[encoder], paths, prompts, batch=self._batch, progress=lambda done, total, what: None)


def _metrics(encoders: Sequence[ImageEncoder]) -> list[Metric]:
    return first_of(standard_metrics(encoders), [question.kind for question in QUESTIONS])


def until(course: Course, step: int) -> Course | None:
    """Return what was known at a step; None where that is nothing."""
    curves = tuple(
        curve.model_copy(
            update={
                "values": {at: values for at, values in curve.values.items() if at <= step},
                "scores": {at: score for at, score in curve.scores.items() if at <= step},
            }
        )
        for curve in course.curves
    )
    return concluded(course.model_copy(update={"curves": curves})) if curves and curves[0].values else None


def concluded(course: Course) -> Course:
    """Return the course with its knee."""
    curves = {curve.kind: curve for curve in course.curves}
    if distance := curves.get(TEACHER_DISTANCE.kind):
        nearest = find_nearest(distance.values, distance.start, distance.prompts, seed=0)
        return course.model_copy(update={"knee": nearest})
    likeness, drift = curves.get(SUBJECT_FIDELITY.kind), curves.get(CLASS_DRIFT.kind)
    if likeness is None:
        return course
    knee = find_knee(
        likeness.values, drift.values if drift else None, likeness.prompts, drift.prompts if drift else (), seed=0
    )
    return course.model_copy(update={"knee": knee})
