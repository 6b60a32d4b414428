"""What else changed: images without the token, against the base's own image of the same prompt and seed."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from limner.metrics.metric import Metric, View
from limner.metrics.scores import Level
from limner.metrics.similarity import distance_within_groups, drift


class ClassDrift(Metric):
    """(1 - cosine) / 2 to the base's image, on prompts with the class noun and no token."""

    kind: Literal["class_drift"] = "class_drift"
    """Which question."""
    title = "Change of others of the class"
    says = "How far images of the class have moved from the base's image of the same prompt and seed: 0 is not at all."
    better = "lower"
    sets = ("class",)
    relative_to_base = True

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each image's drift."""
        return drift(view.images, view.base)

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return the size of the change that another seed makes."""
        return _another_seed(view)


class OtherDrift(Metric):
    """(1 - cosine) / 2 to the base's image, on prompts that have nothing to do with the subject."""

    kind: Literal["other_drift"] = "other_drift"
    """Which question."""
    title = "Change of everything else"
    says = "How far unrelated images have moved from the base's image of the same prompt and seed: 0 is not at all."
    better = "lower"
    sets = ("other",)
    relative_to_base = True

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each image's drift."""
        return drift(view.images, view.base)

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return the size of the change that another seed makes."""
        return _another_seed(view)


def _another_seed(view: View) -> tuple[Level, ...]:
    """Return how far apart two base images of one prompt are, on the scale of `drift`."""
    apart = distance_within_groups(view.base, view.prompt_index) / 2
    known = apart[~apart.isnan()]
    if not len(known):
        return ()
    title = "two base images of one prompt"
    return (Level(name="another_seed", title=title, value=float(known.mean()), pairs=len(known)),)
