"""Questions with a value an image: likeness, copying, prompts, the class and everything else, variety, quality."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from limner.metrics.metric import Question, View
from limner.metrics.scores import Level
from limner.metrics.similarity import (
    distance_within_groups,
    drift,
    is_nearest,
    leave_one_out,
    leave_one_out_rate,
    mean_cosine,
    nearest_cosine,
    paired_cosine,
)


def _to_subject(view: View) -> Float[Tensor, " images"]:
    return mean_cosine(view.images, view.sitter)


def _to_nearest_picture(view: View) -> Float[Tensor, " images"]:
    return nearest_cosine(view.images, view.subject)


def _to_prompt(view: View) -> Float[Tensor, " images"]:
    assert view.text is not None, "a question about prompts was put to an encoder that reads no text"
    return paired_cosine(view.images, view.text)


def _from_base(view: View) -> Float[Tensor, " images"]:
    return drift(view.images, view.base)


def _from_one_another(view: View) -> Float[Tensor, " images"]:
    return distance_within_groups(view.images, view.prompt_index)


def _to_foreground(view: View) -> Float[Tensor, " images"]:
    assert view.foreground is not None, "a question about the foreground was put without masks"
    return view.foreground.double().mean(1)


def _is_identified(view: View) -> Float[Tensor, " images"]:
    return is_nearest(view.images, view.sitter, view.others)


def _is_nearer_than_base(view: View) -> Float[Tensor, " images"]:
    limit = torch.quantile(nearest_cosine(view.base, view.subject), 0.95)
    return (_to_nearest_picture(view) > limit).double()


def _as_given(view: View) -> Float[Tensor, " images"]:
    """Return what the encoder gave where that is the value itself."""
    return view.images[:, 0].double()


def _within(view: View) -> Level | None:
    """Return what the real pictures score among themselves."""
    if len(view.sitter) < 2:
        return None
    title, value = "the real pictures among themselves", float(leave_one_out(view.sitter).mean())
    return Level(name="within", title=title, value=value, pairs=_pairs(view.sitter))


def _between(view: View) -> Level | None:
    """Return what others of the class score."""
    if not len(view.class_pictures):
        return None
    value = float(mean_cosine(view.class_pictures, view.sitter).mean())
    pairs = len(view.class_pictures) * len(view.sitter)
    return Level(name="between", title="others of the class", value=value, pairs=pairs)


def _closest_pair(view: View) -> Level | None:
    """Return how near the two training pictures that are most alike are: beyond it an image is suspect."""
    title, value = "the two most similar training pictures", float(leave_one_out(view.subject).max())
    return Level(name="closest_pair", title=title, value=value, pairs=_pairs(view.subject), is_limit=True)


def _another_seed(view: View) -> Level | None:
    """Return how far apart two base images of one prompt are, on the scale of `drift`."""
    apart = distance_within_groups(view.base, view.prompt_index) / 2
    known = apart[~apart.isnan()]
    if not len(known):
        return None
    title = "two base images of one prompt"
    return Level(name="another_seed", title=title, value=float(known.mean()), pairs=len(known))


def _variety(view: View) -> Level | None:
    """Return how different the training pictures are from one another."""
    if len(view.subject) < 2:
        return None
    value = 1 - float(leave_one_out(view.subject).mean())
    return Level(name="within", title="the training pictures", value=value, pairs=_pairs(view.subject))


def _foreground_within(view: View) -> Level | None:
    """Return how well the real pictures hold one another's foreground."""
    own = view.own_foreground
    if own is None or len(own) < 2:
        return None
    others = own[~torch.eye(len(own), dtype=torch.bool)]
    title = "the real pictures among themselves"
    return Level(name="within", title=title, value=float(others.mean()), pairs=len(others))


def _chance(view: View) -> Level:
    """Return the rate of an image that looks like none of the subjects."""
    title, subjects = "chance", 1 + len(view.others)
    return Level(name="chance", title=title, value=1 / subjects, pairs=subjects)


def _real_rate(view: View) -> Level | None:
    """Return the rate of the real pictures, each against the rest of them."""
    if len(view.sitter) < 2:
        return None
    title, value = "the real pictures, each left out once", leave_one_out_rate(view.sitter, view.others)
    return Level(name="within", title=title, value=value, pairs=len(view.sitter))


def _pairs(pictures: Float[Tensor, "pictures dim"]) -> int:
    return len(pictures) * (len(pictures) - 1) // 2


SUBJECT_FIDELITY = Question(
    kind="subject_fidelity",
    title="Likeness to the subject",
    says="How much the images made with the token look like real pictures of the subject: mean cosine over all pairs.",
    better="higher",
    sets=("subject",),
    per_image=_to_subject,
    levels=(_within, _between),
    is_claimed=True,
    least_pictures=1,
)
PROMPT_FOLLOWING = Question(
    kind="prompt_following",
    title="Following the prompt",
    says="How well the images made with the token show what their prompts ask for; scored without the token.",
    better="higher",
    sets=("subject",),
    per_image=_to_prompt,
    is_claimed=True,
    needs_text=True,
)
# PRES of arXiv:2208.12242.
CLASS_KEPT = Question(
    kind="class_kept",
    title="The class turning into the subject",
    says="How much images of the class, made without the token, look like the subject. It must not rise: if it does, "
    "others of the class are turning into the subject.",
    better="lower",
    sets=("class",),
    per_image=_to_subject,
    levels=(_within, _between),
    is_claimed=True,
    least_pictures=1,
)
CLASS_DRIFT = Question(
    kind="class_drift",
    title="Change of others of the class",
    says="How far images of the class have moved from the base's image of the same prompt and seed: 0 is not at all.",
    better="lower",
    sets=("class",),
    per_image=_from_base,
    levels=(_another_seed,),
    relative_to_base=True,
)
OTHER_DRIFT = Question(
    kind="other_drift",
    title="Change of everything else",
    says="How far unrelated images have moved from the base's image of the same prompt and seed: 0 is not at all.",
    better="lower",
    sets=("other",),
    per_image=_from_base,
    levels=(_another_seed,),
    is_claimed=True,
    relative_to_base=True,
)
OTHER_PROMPTS_FOLLOWED = Question(
    kind="other_prompts_followed",
    title="Following prompts without the token",
    says="How well images made without the token show what their prompts ask for. If it falls, the base was damaged.",
    better="higher",
    sets=("class", "other"),
    per_image=_to_prompt,
    needs_text=True,
)
DIVERSITY = Question(
    kind="diversity",
    title="Variety within a prompt",
    says="How different the images of one prompt are from one another. The base draws many individuals, a tuned model "
    "one: some loss is natural. Far below the variety of the training pictures, the model repeats itself.",
    better="neither",
    sets=("subject",),
    per_image=_from_one_another,
    levels=(_variety,),
    least_images_per_prompt=2,
)
COPYING = Question(
    kind="copying",
    title="Nearest training picture",
    says="How near an image comes to any one training picture. It rises with likeness; above what the two most "
    "similar training pictures have in common, an image may be a copy.",
    better="neither",
    sets=("subject",),
    per_image=_to_nearest_picture,
    levels=(_closest_pair,),
    least_pictures=2,
)
MASKED_FIDELITY = Question(
    kind="masked_fidelity",
    title="Likeness to the subject without its background",
    says="How well the parts of the subject are found again in the images: mean over the patches inside the masks of "
    "the training pictures of the best cosine with any patch of the image. Copied backgrounds count for nothing.",
    better="higher",
    sets=("subject",),
    per_image=_to_foreground,
    levels=(_foreground_within,),
    needs_masks=True,
)
IDENTIFICATION = Question(
    kind="identification",
    title="Recognised among other subjects",
    says="The share of images that look more like the subject than like any of the other subjects.",
    better="higher",
    sets=("subject",),
    per_image=_is_identified,
    levels=(_real_rate, _chance),
    is_rate=True,
    needs_others=True,
    least_pictures=1,
)
COPIES = Question(
    kind="copies",
    title="Nearer to a training picture than the base comes",
    says="The share of images that come nearer to a training picture than 95 % of the base's images of the same "
    "prompts. It rises with likeness too: look at the nearest ones.",
    better="neither",
    sets=("subject",),
    per_image=_is_nearer_than_base,
    is_rate=True,
    least_pictures=1,
)
PREFERENCE = Question(
    kind="preference",
    title="What people would prefer",
    says="How well images please a model that learned from people's choices between two pictures of one prompt.",
    better="higher",
    sets=("subject", "class", "other"),
    per_image=_to_prompt,
    needs_text=True,
)
AESTHETIC = replace(
    PREFERENCE,
    kind="aesthetic",
    title="How pleasing the images are",
    says="The rating of a model that learned from people's ratings of pictures, about 1 to 10.",
    per_image=_as_given,
    needs_text=False,
)
PERCEIVED_DIVERSITY = replace(DIVERSITY, per_image=_as_given, levels=())
"""The same question, answered by a distance of two pictures in place of an encoder (LPIPS)."""
QUESTIONS = (
    SUBJECT_FIDELITY,
    PROMPT_FOLLOWING,
    CLASS_KEPT,
    CLASS_DRIFT,
    OTHER_DRIFT,
    OTHER_PROMPTS_FOLLOWED,
    MASKED_FIDELITY,
    IDENTIFICATION,
    DIVERSITY,
    COPYING,
    COPIES,
)
"""What is asked of every comparison; quality is asked where a model of it is named."""
