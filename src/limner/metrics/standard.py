"""Which metrics are taken when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from limner.metrics.diversity import Diversity
from limner.metrics.encoder import ImageEncoder, TextImageEncoder
from limner.metrics.forgetting import ClassDrift, OtherDrift
from limner.metrics.metric import Metric
from limner.metrics.prompt import OtherPromptsFollowed, PromptFollowing
from limner.metrics.subject import ClassKept, Copying, SubjectFidelity


def standard_metrics(encoders: Sequence[ImageEncoder]) -> tuple[Metric, ...]:
    """Return the standard questions for the given encoders.

    Encoders that read text answer the questions about prompts; the others answer those about pictures, the first
    of them all and the rest (the baselines) only those of likeness.
    """
    texts = [e.name for e in encoders if isinstance(e, TextImageEncoder)]
    images = [e.name for e in encoders if not isinstance(e, TextImageEncoder)]
    first = images[:1]
    return (
        *(SubjectFidelity(encoder=name) for name in images),
        *(PromptFollowing(encoder=name) for name in texts),
        *(ClassKept(encoder=name) for name in images),
        *(ClassDrift(encoder=name) for name in first),
        *(OtherDrift(encoder=name) for name in first),
        *(OtherPromptsFollowed(encoder=name) for name in texts),
        *(Diversity(encoder=name) for name in first),
        *(Copying(encoder=name) for name in first),
    )
