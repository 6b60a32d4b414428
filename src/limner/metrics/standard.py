"""Which metrics are taken when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from limner.metrics.encoder import ImageEncoder, TextImageEncoder
from limner.metrics.metric import Metric
from limner.metrics.questions import CLASS_KEPT, QUESTIONS, SUBJECT_FIDELITY


def standard_metrics(encoders: Sequence[ImageEncoder]) -> tuple[Metric, ...]:
    """Return every question with those of the given encoders that answer it.

    Encoders that read text answer the questions about prompts; the others answer those about pictures, the first
    of them all and the rest (the baselines) only those of likeness.
    """
    texts = [e.name for e in encoders if isinstance(e, TextImageEncoder)]
    images = [e.name for e in encoders if not isinstance(e, TextImageEncoder)]
    return tuple(
        Metric(question, name)
        for question in QUESTIONS
        for name in (
            texts if question.needs_text else images if question in (SUBJECT_FIDELITY, CLASS_KEPT) else images[:1]
        )
    )
