"""Which metrics are taken when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from limner.metrics.encoder import ImageEncoder, PatchEncoder, TextImageEncoder
from limner.metrics.few_steps import FEW_STEP_QUESTIONS, SHARPNESS
from limner.metrics.luminance_gradient import LuminanceGradient
from limner.metrics.metric import Metric, Question
from limner.metrics.questions import (
    AESTHETIC,
    CLASS_KEPT,
    MASKED_FIDELITY,
    PREFERENCE,
    QUESTIONS,
    SUBJECT_FIDELITY,
)
from limner.metrics.set_questions import CLASS_MMD, SET_QUESTIONS


def standard_metrics(encoders: Sequence[ImageEncoder]) -> tuple[Metric, ...]:
    """Return every question with those of the given encoders that answer it.

    Encoders that read text answer the questions about prompts; all that are independent of the base answer those about
    likeness, and the first of those that do not read text answers the others.
    """
    return answered((*QUESTIONS, *SET_QUESTIONS), encoders)


def few_step_metrics(encoders: Sequence[ImageEncoder]) -> list[Metric]:
    """Return what is asked at each step of a few-step run, each with the first encoder that answers it."""
    found = first_of(answered(FEW_STEP_QUESTIONS, encoders), [question.kind for question in FEW_STEP_QUESTIONS])
    return [*found, Metric(SHARPNESS, LuminanceGradient.name)]


def answered(questions: Sequence[Question], encoders: Sequence[ImageEncoder]) -> tuple[Metric, ...]:
    """Return every question with those of the given encoders that answer it."""
    return tuple(Metric(question, e.name) for question in questions for e in _who(question, encoders))


def first_of(metrics: Sequence[Metric], kinds: Sequence[str]) -> list[Metric]:
    """Return the first metric of each question, in the order of `kinds`; questions that nobody answers are left out."""
    first = {metric.question.kind: metric for metric in reversed(metrics)}
    return [first[kind] for kind in kinds if kind in first]


def quality_metric(model: ImageEncoder) -> Metric:
    """Return the question that a model of image quality answers."""
    return Metric(PREFERENCE if isinstance(model, TextImageEncoder) else AESTHETIC, model.name)


def _who(question: Question, encoders: Sequence[ImageEncoder]) -> Sequence[ImageEncoder]:
    texts = [e for e in encoders if isinstance(e, TextImageEncoder)]
    if question.needs_text:
        return texts
    independent = [e for e in encoders if e.is_independent]
    if question in (SUBJECT_FIDELITY, CLASS_KEPT):
        return independent
    if question is MASKED_FIDELITY:
        return [e for e in independent if isinstance(e, PatchEncoder)]
    pictures = [e for e in independent if e not in texts][:1]
    if question is CLASS_MMD:  # its authors take CLIP
        return [e for e in independent if e in texts] or pictures
    return pictures or independent[:1]
