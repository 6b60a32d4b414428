"""Recipes: every shipped one is valid, settings are laid over, mistakes are named, the saved one is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.adapters.lora import LoRA
from limner.errors import UserError
from limner.recipe import (
    UNIONS,
    Recipe,
    explain,
    load_recipe,
    outline,
    parse_settings,
    save_recipe,
    setting_names,
    shipped_recipes,
)
from limner.train.optimizer import AdamW, Lion


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
        with pytest.raises(UserError, match=r"Did you mean|is not a setting|has no meaning"):
            load_recipe(None, {wrong: 1})


def test_recipe_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Use .*\blora, .* or the path"):
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


def test_without_a_kind_the_default_member_is_meant() -> None:
    recipe = load_recipe(None, {"optimizer.weight_decay": 0.5, "adapter.rank": 3})
    assert recipe.optimizer == AdamW(weight_decay=0.5)
    assert recipe.adapter == LoRA(rank=3)


def test_another_kind_keeps_of_the_recipe_only_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[optimizer]\nkind = "prodigy"\nd_coef = 2.0\nbeta1 = 0.8\n')
    assert load_recipe(path, {"optimizer.kind": "lion"}).optimizer == Lion(beta1=0.8)
    with pytest.raises(
        UserError, match=r"optimizer.d_coef has no meaning for optimizer.kind=lion\. Leave it out, or use"
    ):
        load_recipe(path, {"optimizer.kind": "lion", "optimizer.d_coef": 1.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer.d0": 1}, r"optimizer.d0 has no meaning for optimizer.kind=adamw\. .* use optimizer.kind=prodigy"),
        ({"optimizer.kind": "lion", "optimizer.epsilon": 1}, "epsilon has no meaning for optimizer.kind=lion"),
        ({"optimizer.weight_decai": 1}, r"not a setting\. Did you mean optimizer.weight_decay\?"),
        ({"optimizer.kind": "prodgy"}, r"optimizer.kind = 'prodgy' is not allowed \(use .*Did you mean prodigy\?"),
        ({"optimizer.kind": 3}, "optimizer.kind = 3 is not allowed"),
        ({"optimizer.beta1": 2}, "optimizer.beta1 = 2 is not allowed .*See: limner explain optimizer.beta1"),
        ({"optimizer": "lion"}, r"optimizer = 'lion' is not allowed \(it is a section\)\. Set .*optimizer.kind"),
        ({"optimizer.kind": "schedule_free", "optimizer.schedule": "cosine"}, "optimizer.schedule = 'cosine' is not"),
        ({"adapter.vectors": 2}, "adapter.vectors has no meaning for adapter.kind=lora"),
        ({"adapter.lora.rank": 2}, r"adapter.lora has no meaning for .*=lora\. .* use adapter.kind=pivotal"),
        ({"adapter.kind": "pivotal", "adapter.lora.rnk": 2}, "Did you mean adapter.lora.rank"),
    ],
)  # fmt: skip
def test_mistakes_within_a_union_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(None, settings)


@pytest.mark.parametrize("section", UNIONS)
def test_a_union_explains_every_member_and_all_its_settings(section: str) -> None:
    text = explain(section)
    for kind, member in UNIONS[section].items():
        assert f"    {kind}: " in text
        for field in member.model_fields:
            assert f"{section}.{field}" in text
    assert explain("optimizer.d_coef").splitlines()[0].endswith("(float)   [optimizer.kind = prodigy]")
    assert explain("adapter.lora.rank").splitlines()[0].endswith("(int)   [adapter.kind = pivotal]")
    assert "(dict)" in explain("adapter.options")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer.kind": "prodigy"}, "Set learning_rate=1"),
        ({"optimizer.fused_backward": True}, "Set optimizer.max_grad_norm=0"),
        ({"optimizer.kind": "schedule_free", "ema.decay": 0.9}, "keeps an average of its own"),
        ({"prior.teacher": True}, "Set prior.enabled=true"),
        ({"prior.teacher": True, "prior.enabled": True, "objective.prediction_type": "epsilon"}, "does not predict"),
    ],
)
def test_settings_of_the_training_that_do_not_go_together(settings: dict[str, object], message: str) -> None:
    recipe = load_recipe(None, settings)
    with pytest.raises(UserError, match=message):
        recipe.check_training()


def test_shipped_recipes_go_together() -> None:
    for name in shipped_recipes():
        load_recipe(name).check_training()
