"""Is it the subject, and is it more than a copy of a training picture?"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from limner.metrics.metric import Metric, View
from limner.metrics.scores import Level
from limner.metrics.similarity import leave_one_out, mean_cosine, nearest_cosine


class SubjectFidelity(Metric):
    """Mean cosine over all pairs of an image made with the token and a training picture."""

    kind: Literal["subject_fidelity"] = "subject_fidelity"
    """Which question."""
    title = "Likeness to the subject"
    says = "How much the images made with the token look like the training pictures: mean cosine over all pairs."
    better = "higher"
    sets = ("subject",)
    least_pictures = 1

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each image's mean cosine with the training pictures."""
        return mean_cosine(view.images, view.subject)

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return what the real pictures score among themselves, and what another of the class scores."""
        return (*_within(view), *_between(view))


class Copying(Metric):
    """Cosine of an image made with the token with the training picture nearest to it."""

    kind: Literal["copying"] = "copying"
    """Which question."""
    title = "Nearest training picture"
    says = (
        "How near an image comes to any one training picture. It rises with likeness; above what the two most similar "
        "training pictures have in common, an image may be a copy."
    )
    better = "neither"
    sets = ("subject",)
    least_pictures = 2

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each image's cosine with the training picture nearest to it."""
        return nearest_cosine(view.images, view.subject)

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return how near the two training pictures that are most alike are: beyond it an image is suspect."""
        return (
            Level(
                name="closest_pair",
                title="the two most similar training pictures",
                value=float(leave_one_out(view.subject).max()),
                pairs=len(view.subject) * (len(view.subject) - 1) // 2,
                is_limit=True,
            ),
        )


class ClassKept(Metric):
    """Cosine of images of the class, made without the token, with the training pictures (PRES, arXiv:2208.12242)."""

    kind: Literal["class_kept"] = "class_kept"
    """Which question."""
    title = "The class turning into the subject"
    says = (
        "How much images of the class, made without the token, look like the subject. It must not rise: if it does, "
        "others of the class are turning into the subject."
    )
    better = "lower"
    sets = ("class",)
    least_pictures = 1

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each class image's mean cosine with the training pictures."""
        return mean_cosine(view.images, view.subject)

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return what the real pictures score among themselves, and what another of the class scores."""
        return (*_within(view), *_between(view))


def _within(view: View) -> tuple[Level, ...]:
    n = len(view.subject)
    if n < 2:
        return ()
    value = float(leave_one_out(view.subject).mean())
    return (Level(name="within", title="the real pictures among themselves", value=value, pairs=n * (n - 1) // 2),)


def _between(view: View) -> tuple[Level, ...]:
    if not len(view.class_pictures):
        return ()
    value = float(mean_cosine(view.class_pictures, view.subject).mean())
    pairs = len(view.class_pictures) * len(view.subject)
    return (Level(name="between", title="others of the class", value=value, pairs=pairs),)
