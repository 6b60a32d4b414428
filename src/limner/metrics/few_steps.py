"""Questions about few-step pictures while they are learned: are they what the base makes of it in many steps?"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from limner.metrics.distances import ratio_of_means
from limner.metrics.metric import Question, View
from limner.metrics.questions import PROMPT_FOLLOWING, SUBJECT_FIDELITY
from limner.metrics.set_questions import CLASS_KERNEL_DISTANCE


def _to_base(view: View) -> Float[Tensor, " images"]:
    return ratio_of_means(view.images[:, 0], view.base[:, 0])


TEACHER_DISTANCE = replace(
    CLASS_KERNEL_DISTANCE,
    kind="teacher_distance",
    title="Distance to the many-step pictures, as a set",
    says="How far the few-step pictures, as a set, are from what the base makes of the same prompts and noise in many "
    "steps: KID's cubic kernel. 0 is as good as many steps; the mean over all images' shares.",
    sets=("subject", "class"),
)
FEW_STEP_FOLLOWING = replace(
    PROMPT_FOLLOWING,
    says="How well the images show what their prompts ask for; scored without the token.",
    sets=("subject", "class"),
)
SHARPNESS = Question(
    kind="sharpness",
    title="Sharpness against the many-step pictures",
    says="The mean gradient of the luminance of the few-step pictures, as a share of that of what the base makes of "
    "the same prompts and noise in many steps: 1 is as sharp, less is blurred, more is grain.",
    better="neither",
    sets=("subject", "class"),
    per_image=_to_base,
    relative_to_base=True,
)
FEW_STEP_QUESTIONS = (TEACHER_DISTANCE, FEW_STEP_FOLLOWING, SUBJECT_FIDELITY)
"""What is asked at each step of a few-step run, beside sharpness; likeness only with a subject beneath."""
