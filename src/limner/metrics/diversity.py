"""Do the images of one prompt still differ from one another?"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from limner.metrics.metric import Metric, View
from limner.metrics.scores import Level
from limner.metrics.similarity import distance_within_groups, leave_one_out


class Diversity(Metric):
    """Mean distance 1 - cosine of an image to the other images of its prompt."""

    kind: Literal["diversity"] = "diversity"
    """Which question."""
    title = "Variety within a prompt"
    says = (
        "How different the images of one prompt are from one another. The base draws many individuals, a tuned model "
        "one: some loss is natural. Far below the variety of the training pictures, the model repeats itself."
    )
    better = "neither"
    sets = ("subject",)
    least_images_per_prompt = 2

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each image's mean distance to the other images of its prompt."""
        return distance_within_groups(view.images, view.prompt_index)

    def levels(self, view: View) -> tuple[Level, ...]:
        """Return how different the training pictures are from one another."""
        n = len(view.subject)
        if n < 2:
            return ()
        value = 1 - float(leave_one_out(view.subject).mean())
        return (Level(name="within", title="the training pictures", value=value, pairs=n * (n - 1) // 2),)
