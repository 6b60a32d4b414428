"""Class pictures that the base draws: of every prompt as many, each with its prompt as caption."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.conflicts import check_settings
from limner.drawing import draw_class, load_base
from limner.prepare.check import check_class_pictures
from limner.recipe import load_recipe, shipped_recipes
from limner.watch import Watch

PROMPTS = ["a photo of a {class_noun}", "a red {class_noun}", "a {class_noun} in snow"]


def test_each_class_picture_is_learned_with_the_prompt_that_drew_it(random_base: Path, tmp_path: Path) -> None:
    settings = {"base": str(random_base), "pictures.class_noun": "dog", "prior.enabled": True,
                "prior.prompts": PROMPTS, "generation.num_inference_steps": 1}  # fmt: skip
    recipe = load_recipe("lora", settings)
    family = load_base(recipe, Watch())
    out = tmp_path / "class"
    for _ in range(2):  # what is there is not drawn again, and its captions stay
        draw_class(family, recipe, out, 5, 32, Watch())
    checked = check_class_pictures(out, recipe.pictures, recipe.prior, resolution_px=32)
    said = [example.caption for example in sorted(checked.examples, key=lambda one: one.name)]
    assert said == ["a photo of a dog"] * 2 + ["a red dog"] * 2 + ["a dog in snow"]


def test_prompts_without_a_picture_are_said() -> None:
    few = {"pictures.class_noun": "dog", "prior.enabled": True, "prior.prompts": PROMPTS, "prior.count": 2}
    assert check_settings(load_recipe("lora", few)) == [
        "prior.count=2: only the first 2 of 3 prior.prompts get a class picture"
    ]
    assert not check_settings(load_recipe("lora", few), class_pictures=True)


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if load_recipe(name).prior.enabled])
def test_a_shipped_prior_shows_more_than_what_it_is_judged_by(name: str) -> None:
    recipe = load_recipe(name)
    assert len(recipe.prior.prompts) > 4
    assert len({*recipe.prior.prompts} & {*recipe.evaluation.class_prompts}) <= 1
