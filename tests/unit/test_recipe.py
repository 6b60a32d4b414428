"""Recipes: every shipped one is valid, settings are laid over, mistakes are named, the saved one is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.errors import UserError
from limner.recipe import (
    Recipe,
    explain,
    load_recipe,
    outline,
    parse_settings,
    save_recipe,
    setting_names,
    shipped_recipes,
)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_saves_to_itself(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    save_recipe(recipe, tmp_path / "recipe.toml")
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_settings_are_laid_over_the_recipe() -> None:
    recipe = load_recipe("demo", {"adapter.rank": 3, "steps": 7, "prior.enabled": False})
    assert (recipe.adapter.rank, recipe.steps, recipe.prior.enabled, recipe.base) == (3, 7, False, "tiny")


def test_values_are_toml_and_the_rest_is_text() -> None:
    words = ["steps=4", "prior.enabled=true", 'base="a b"', "base2=tiny", 'x=["a", 1]', "prompt=a dog = a friend"]
    assert parse_settings(words) == {
        "steps": 4, "prior.enabled": True, "base": "a b", "base2": "tiny", "x": ["a", 1], "prompt": "a dog = a friend",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["steps"], ["=4"], ["steps=1", "steps=2"]])
def test_words_that_are_no_settings_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError):
        parse_settings(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter.rnk": 4}, r"adapter.rnk is not a setting. Did you mean adapter.rank\?"),
        ({"learning_rte": 1}, r"Did you mean learning_rate\?"),
        ({"rank": 4}, r"rank is not a setting. Did you mean adapter.rank\?"),
        ({"qqq": 4}, "qqq is not a setting. See all: limner explain"),
        ({"steps": "many"}, "steps = 'many' is not allowed"),
        ({"adapter.rank": 0}, "adapter.rank = 0 is not allowed"),
        ({"precision": "fp4"}, "precision = 'fp4' is not allowed"),
        ({"steps.x": 4}, "steps is a setting, not a section|steps.x"),
        ({"adapter.kind": "dora"}, "adapter.kind = 'dora' is not allowed"),
    ],
)
def test_mistakes_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("lora", settings)


def test_every_setting_one_edit_off_is_refused_with_the_right_suggestion() -> None:
    for name, _, _ in setting_names():
        section, dot, last = name.rpartition(".")
        wrong = f"{section}{dot}{last[:-1]}" if len(last) > 4 else f"{section}{dot}{last}s"
        with pytest.raises(UserError, match=r"Did you mean|is not a setting"):
            load_recipe(None, {wrong: 1})


def test_recipe_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Use demo, dreambooth-lora, lora"):
        load_recipe("nope")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = \n")
    with pytest.raises(UserError, match=r"broken.toml: is not readable TOML .*line 1"):
        load_recipe(broken)
    broken.write_text("[adapter]\nrnk = 3\n")
    with pytest.raises(UserError, match=r"^broken.toml: adapter.rnk is not a setting. Did you mean adapter.rank\?"):
        load_recipe(broken)


def test_every_setting_is_explained() -> None:
    for name, field, _ in setting_names():
        assert name in explain(name)
        assert field.description or name.endswith(".kind"), f"{name} has no docstring"
    assert explain("adapter").count("adapter.") >= 4
    assert len(outline().splitlines()) == len(list(setting_names()))
    with pytest.raises(UserError, match=r"Did you mean adapter.rank\?"):
        explain("adapter.rnk")


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().steps = 3  # type: ignore[misc]
