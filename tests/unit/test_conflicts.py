"""Settings that contradict one another are refused, and those that do nothing are said; what ships goes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limner.conflicts import PLACEHOLDERS, check_settings, require_use, without_effect
from limner.errors import UserError
from limner.recipe import Recipe, load_recipe, save_recipe, setting_names, shipped_recipes

DOG = {"pictures.class_noun": "dog"}
NAMES = {setting.name for setting in setting_names()}
PRIOR, TEXTUAL = {"prior.enabled": True}, {"adapter.kind": "textual_inversion"}
FEW = {"objective.kind": "consistency"}
NAMELESS = {**FEW, "pictures.class_noun": None, "pictures.token": "", "pictures.caption": "x"}
SIX = [f"a dog {i}" for i in range(6)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer.kind": "prodigy"}, "Set learning_rate=1"),
        ({"optimizer.kind": "prodigy", "learning_rate": 1, "adapter.text_encoder": True,
          "adapter.text_encoder_learning_rate": 5e-5}, "the learning rate of text_encoder is 5e-05, which is only a"),
        ({"optimizer.fused_backward": True}, "Set optimizer.max_grad_norm=0"),
        ({"optimizer.fused_backward": True, "optimizer.max_grad_norm": 0}, "is for adapter.kind=full, and this"),
        ({"optimizer.warmup_steps": 3, "optimizer.warmup_fraction": 0.1}, "say the same thing twice"),
        ({"optimizer.kind": "schedule_free", "ema.decay": 0.9}, "keeps an average of its own"),
        ({"prior.teacher": True}, "Set prior.enabled=true"),
        ({**PRIOR, "prior.teacher": True, "adapter.kind": "full", "objective.prediction_type": "epsilon"}, "predict"),
        ({"base_storage": "int8", "adapter.kind": "full"}, "base_storage=int8: is for a base that stays as it is"),
        ({"offload": True, "adapter.kind": "full"}, "offload=true: is for a base that stays as it is"),
        ({"base_storage": "nf4", "adapter.kind": "peft", "adapter.method": "olora"}, "olora takes its start out"),
        ({"objective.prediction_type": "v_prediction"}, "is too much to learn for adapter.kind=lora"),
        ({**PRIOR, **TEXTUAL}, "captions do not hold the new word. Set prior.enabled=false, or adapter.kind=pivotal"),
        ({**PRIOR, "prior.prompts": ["a sks dog"]}, "contains the trigger"),
        ({"pictures.class_noun": None}, "pictures.class_noun: is not set"),
        ({"pictures.caption": "a {subjekt}"}, r"has \{subjekt\}, which nothing fills in"),
        ({"pictures.templates": ["a {tokn}"]}, r"Did you mean \{token\}\?"),
        ({"evaluation.prompts": ["a {subjct} here"]}, r"Did you mean \{subject\}\?"),
        ({"evaluation.prompts": ["a dog"]}, r"has no \{subject\}"),
        ({"evaluation.prompts": []}, "evaluation.prompts: is empty"),
        ({"evaluation.other_prompts": ["a {subject}"]}, "Write it out"),
        ({"validation.every_steps": 5, "validation.prompts": ["a {subject}"]}, "1 are too few to tell one step from"),
        ({"validation.every_steps": 5, "evaluation.prompts": ["a picture of a {subject}"]}, "cannot be reported on it"),
        ({"validation.every_steps": 5, "evaluation.prompts": ["a {subject} by the sea"]}, "validation.class_prompts: "),
        ({"validation.every_steps": 5, "validation.prompts": ["a {subjct}"]}, r"Did you mean \{subject\}\?"),
        ({"validation.every_steps": 5, "validation.prompts": ["a dog"]}, r"has no \{subject\}"),
        ({"validation.every_steps": 5, "steps": 4}, "the run has only 4 steps"),
        ({**NAMELESS, "validation.every_steps": 5}, r"'a picture of a \{subject\}' asks for a subject, and this few-"
         "step run has no word for one. Give 6 or more, unlike the pictures' captions, or .*class_noun=dog"),
        ({**NAMELESS, "validation.every_steps": 5, "validation.prompts": ["a dog", "a cat"]}, "2 are too few to"),
        ({**NAMELESS, "validation.every_steps": 5, "validation.prompts": SIX,
          "validation.class_prompts": ["a {class_noun} here"]}, "validation.class_prompts: 'a {class_noun} here' asks"),
        ({**FEW, "validation.every_steps": 5, "validation.prompts": [*SIX[:5], "a dog in the jungle"]},
         "validation.prompts: 'a dog in the jungle' is one of the comparison's"),
        ({**NAMELESS, "preview.every_steps": 5}, "preview.prompt: 'a photo of {subject}' asks for a subject"),
        ({**FEW, "distill.adapter": "runs/dog", "validation.every_steps": 5, "validation.prompts": SIX},
         r"'a dog 0' has no \{subject\}"),
        ({"checkpoint.choose": "evidence", "steps": 400}, "such as validation.every_steps=40"),
        ({"checkpoint.choose": "loss"}, "Set evaluation.pictures=FOLDER"),
        ({"preview.prompt": "a {token}", "preview.every_steps": 5}, r"Did you mean \{subject\}\?"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    given = {**DOG, **settings}
    recipe = load_recipe(None, {key: value for key, value in given.items() if value is not None})
    with pytest.raises(UserError, match=message):
        check_settings(recipe)


IDLE: list[tuple[dict[str, Any], str, str]] = [
    ({"prior.count": 50}, "prior.count", "prior.enabled is false"),
    ({"prior.weight": 0.5}, "prior.weight", "prior.enabled is false"),
    ({"distill.inference_steps": 2}, "distill.inference_steps", "objective.kind is denoising"),
    ({**FEW, "distill.words": ["dog"]}, "distill.words", "pictures are given"),
    ({**FEW, "distill.images": 3, "distill.prompts": "x.txt", "distill.words": ["dog"]}, "distill.words",
     "distill.prompts is read instead"),
    ({**PRIOR, "prior.weight": 0, "prior.count": 50}, "prior.count", "prior.weight is 0"),
    ({"preview.prompt": "a dog"}, "preview.prompt", "preview.every_steps is 0"),
    ({"preview.every_steps": 0, "preview.images": 2}, "preview.images", "preview.every_steps is 0"),
    ({"preview.every_steps": 500, "steps": 400}, "preview.every_steps", "the run has only 400 steps"),
    ({"validation.patience": 2}, "validation.patience", "validation.every_steps is 0"),
    ({"checkpoint.every_steps": 0, "checkpoint.keep": 5}, "checkpoint.keep", "so there is one, at the end"),
    ({"pictures.keep_first": 2}, "pictures.keep_first", "pictures.shuffle_tags is 0"),
    ({"pictures.captions_file": "c.csv", "pictures.caption_ext": ".txt"}, "pictures.caption_ext", "captions_file"),
    ({"pictures.subjects": True, "pictures.token": "xyz"}, "pictures.token", "from the folders' names"),
    ({"pictures.subjects": True, "evaluation.images_per_prompt": 2}, "evaluation.images_per_prompt", "not compared"),
    ({"optimizer.cycles": 2}, "optimizer.cycles", "optimizer.schedule is constant"),
    ({"optimizer.schedule": "cosine", "optimizer.power": 3}, "optimizer.power", "optimizer.schedule is cosine"),
    ({"generation.guidance_scale": 1, "generation.negative_prompt": "x"}, "generation.negative_prompt", "which is off"),
    ({"generation.handover": 0.5}, "generation.handover", "neither generation.refiner nor generation.begun_by"),
    ({"generation.aesthetic_score": 8}, "generation.aesthetic_score", "neither generation.refiner nor"),
    ({"generation.guidance_scale": 1, "generation.refiner": "x", "generation.negative_aesthetic_score": 1},
     "generation.negative_aesthetic_score", "which is off"),
    ({"adapter.text_encoder_learning_rate": 1e-5}, "adapter.text_encoder_learning_rate", "text_encoder is false"),
    ({"adapter.kind": "pivotal", "adapter.lora.text_encoder_learning_rate": 1e-5},
     "adapter.lora.text_encoder_learning_rate", "adapter.lora.text_encoder is false"),
    ({**TEXTUAL, "adapter.learning_rate": 1e-3, "learning_rate": 2e-3}, "learning_rate", "learning_rate is set"),
    ({"evaluation.class_prompts": [], "evaluation.other_prompts": [], "evaluation.images_per_class_prompt": 2},
     "evaluation.images_per_class_prompt", "no class_prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "name", "why"), IDLE, ids=[f"{row[1]} {i}" for i, row in enumerate(IDLE)])
def test_what_does_nothing_is_refused_when_given_and_said_when_in_a_file(
    settings: dict[str, Any], name: str, why: str, tmp_path: Path
) -> None:
    recipe = load_recipe(None, {**DOG, **settings})
    with pytest.raises(UserError, match=f"{name}: has no effect, because .*{why}.* Leave it out, or change the other."):
        check_settings(recipe, given=settings)
    assert check_settings(recipe) == []
    save_recipe(recipe, tmp_path / "mine.toml")
    lines = check_settings(load_recipe(tmp_path / "mine.toml"), own_file=True)
    assert [line for line in lines if line.startswith(f"{name} has no effect, because ") and why in line]


def test_class_pictures_of_the_user_are_not_counted() -> None:
    recipe = load_recipe(None, {**DOG, **PRIOR, "prior.count": 5})
    assert check_settings(recipe, given={"prior.count": 5}) == []
    with pytest.raises(UserError, match="prior.count: has no effect, because a folder of class pictures is given"):
        check_settings(recipe, given={"prior.count": 5}, class_pictures=True)


def test_every_rule_is_about_settings_that_exist() -> None:
    recipes = [load_recipe(None, settings) for settings, _, _ in IDLE]
    named = {name for recipe in recipes for name, _ in without_effect(recipe, class_pictures=True)}
    assert named <= NAMES
    assert PLACEHOLDERS.keys() <= NAMES


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_go_together(name: str) -> None:
    assert check_settings(load_recipe(name, DOG)) == []


def test_the_saved_recipe_of_a_plain_run_says_nothing(tmp_path: Path) -> None:
    save_recipe(Recipe.model_validate({"pictures": {"class_noun": "dog"}}), tmp_path / "recipe.toml")
    assert check_settings(load_recipe(tmp_path / "recipe.toml"), own_file=True) == []


def test_settings_that_a_verb_has_no_use_for_are_refused() -> None:
    require_use({"generation.batch": 3, "device": "cpu"}, ("generation", "device"), "drawing")
    with pytest.raises(UserError, match=r"adapter.rank: has no effect on drawing\. Leave it out; of use are gen"):
        require_use({"adapter.rank": 3}, ("generation",), "drawing")
