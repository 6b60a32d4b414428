"""Judges the pictures of steps during training, by the questions and the encoders of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from limner.evaluate.images import ArmImage, read_images, read_pictures
from limner.evaluate.knee import find_knee
from limner.evaluate.look import Seen, look
from limner.evaluate.statistics import interval
from limner.metrics.course import Course, Curve
from limner.metrics.encoder import ImageEncoder
from limner.metrics.metric import Metric, View
from limner.metrics.questions import CLASS_DRIFT, COPYING, PROMPT_FOLLOWING, SUBJECT_FIDELITY
from limner.metrics.standard import first_of, standard_metrics
from limner.rundir import RunDir

QUESTIONS = (SUBJECT_FIDELITY, PROMPT_FOLLOWING, CLASS_DRIFT, COPYING)
"""What is asked at each step: is it the subject, in the scene that was asked for, without forgetting or copying?"""


class Judges:
    """Judges a run's steps one after the other; what never changes is seen once."""

    def __init__(self, encoders: Sequence[ImageEncoder], run: RunDir, base: Path, *, batch: int = 32) -> None:
        """Take the run's own pictures for the subject; `base` is the folder of what the base drew."""
        self._encoders = {encoder.name: encoder for encoder in encoders}
        self._subject, self._held_out = read_pictures(run.sitter), read_pictures(run.held_out)
        self._base, self._batch = read_images(base), batch
        asked = first_of(standard_metrics(encoders), [question.kind for question in QUESTIONS])
        self._metrics = [metric for metric in asked if self._is_answerable(metric)]
        self._seen = {
            name: self._look(name, [*self._subject, *self._held_out, *(image.path for image in self._base)])
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
        rows, base = ([image for image in some if image.set in question.sets] for some in (images, self._base))
        prompts = tuple(row.prompt_key for row in rows)
        untouched = own.rows([row.path for row in base])
        at_base = View(
            images=untouched,
            base=untouched,
            prompt=prompts,
            subject=own.rows(self._subject),
            class_pictures=own.rows([]),
            text=seen.text_rows([row.plain_prompt for row in rows]),
            held_out=own.rows(self._held_out) if self._held_out else None,
        )
        values = question.per_image(replace(at_base, images=seen.rows([row.path for row in rows]))).double()
        score = interval(values.numpy(), prompts, seed=0)
        return Curve(
            kind=question.kind, encoder=metric.encoder, title=question.title, says=question.says,
            better=question.better, levels=metric.levels(at_base), prompts=prompts,
            values={**(before.values if before else {}), step: tuple(values.tolist())},
            scores={**(before.scores if before else {}), step: score},
        )  # fmt: skip

    def _is_answerable(self, metric: Metric) -> bool:
        question = metric.question
        drawn = {image.set for image in self._base}
        return len(self._subject) >= question.least_pictures and set(question.sets) <= drawn

    def _look(self, encoder: str, paths: Sequence[Path]) -> Seen:
        prompts = [image.plain_prompt for image in self._base]
        return look(self._encoders[encoder], paths, prompts, batch=self._batch, progress=lambda done, total, what: None)


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
    likeness, drift = curves.get(SUBJECT_FIDELITY.kind), curves.get(CLASS_DRIFT.kind)
    if likeness is None:
        return course
    knee = find_knee(
        likeness.values, drift.values if drift else None, likeness.prompts, drift.prompts if drift else (), seed=0
    )
    return course.model_copy(update={"knee": knee})
