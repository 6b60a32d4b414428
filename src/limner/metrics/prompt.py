"""Does the image show what the prompt asks for?"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from limner.metrics.metric import Metric, View
from limner.metrics.similarity import paired_cosine


class PromptFollowing(Metric):
    """Cosine of an image made with the token with its prompt, the token dropped."""

    kind: Literal["prompt_following"] = "prompt_following"
    """Which question."""
    title = "Following the prompt"
    says = "How well the images made with the token show what their prompts ask for; scored without the token."
    better = "higher"
    sets = ("subject",)
    needs_text = True

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each image's cosine with its prompt."""
        assert view.text is not None, "prompt_following was given an encoder that reads no text"
        return paired_cosine(view.images, view.text)


class OtherPromptsFollowed(Metric):
    """Cosine of an image made without the token with its prompt."""

    kind: Literal["other_prompts_followed"] = "other_prompts_followed"
    """Which question."""
    title = "Following prompts without the token"
    says = "How well images made without the token show what their prompts ask for. If it falls, the base was damaged."
    better = "higher"
    sets = ("class", "other")
    needs_text = True

    def per_image(self, view: View) -> Float[Tensor, " images"]:
        """Return each image's cosine with its prompt."""
        assert view.text is not None, "other_prompts_followed was given an encoder that reads no text"
        return paired_cosine(view.images, view.text)
