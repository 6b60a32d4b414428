"""Recipes: every shipped one is valid, settings are laid over, mistakes are named, the saved one is the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
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
    words_of_settings,
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


def test_settings_become_words_that_are_read_back() -> None:
    settings = {
        "steps": 4, "prior.enabled": True, "learning_rate": 1e-4, "base": "tiny", "pictures.token": "4",
        "prompt": "a dog = a friend", "x": ["a", 1, "b, c"], "adapter.options": {"use_rslora": True},
    }  # fmt: skip
    words = words_of_settings(settings)
    assert parse_settings(words) == settings
    assert words[:5] == ["steps=4", "prior.enabled=true", "learning_rate=0.0001", "base=tiny", 'pictures.token="4"']


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


def one_edit_off(word: str) -> Iterator[str]:
    """Yield a word with a letter less, one more, another one, and two the other way round; where follows from it."""
    draws = random.Random(word)
    i, j, letter = draws.randrange(len(word)), draws.randrange(len(word) - 1), draws.choice("aeiostnr_")
    yield from (word[:i] + word[i + 1 :], word[:i] + letter + word[i:], word[:i] + letter + word[i + 1 :])
    yield word[:j] + word[j + 1] + word[j] + word[j + 2 :]


def test_every_setting_one_edit_off_is_refused_with_the_right_suggestion() -> None:
    names = {setting.name for setting in setting_names()}
    refused = 0
    for name, _, kinds in setting_names():
        section, dot, last = name.rpartition(".")
        member = {f"{name.partition('.')[0]}.kind": kinds[0]} if kinds else {}
        for wrong in {f"{section}{dot}{edited}" for edited in one_edit_off(last)} - names:
            with pytest.raises(UserError, match=rf"{wrong} is not a setting. Did you mean {name}\?$"):
                load_recipe(None, {**member, wrong: 1})
            refused += 1
    assert refused > 3 * len(names)


def test_a_misspelt_section_is_refused_with_the_right_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for section in sorted({name.partition(".")[0] for name, _, _ in setting_names() if "." in name}):
        for wrong in one_edit_off(section):
            path.write_text(f"steps = 3\n\n[{wrong}]\nevery_steps = 3\n")
            if wrong != section:
                with pytest.raises(UserError, match=rf"^mine.toml:3: {wrong} is not a setting. Did you mean {section}"):
                    load_recipe(path)


def test_recipe_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Use .*\blora, .* or a .toml file"):
        load_recipe("nope")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = \n")
    with pytest.raises(UserError, match=r"broken.toml: is not readable TOML .*line 1"):
        load_recipe(broken)
    broken.write_text("[adapter]\nrnk = 3\n")
    with pytest.raises(UserError, match=r"^broken.toml:2: adapter.rnk is not a setting. Did you mean adapter.rank\?"):
        load_recipe(broken)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("\n# steps\nsteps = 0\n", "x.toml:3: steps = 0 is not allowed"),
        ('[pictures]\nclass_noun = "dog"\n\n[ adapter ]\nkind="lora"\n  rank = 0', "x.toml:6: adapter.rank = 0"),
        ("adapter.rank = 0\n", "x.toml:1: adapter.rank = 0"),
        ('[adapter]\nkind = "lorra"\n', "x.toml:2: adapter.kind = 'lorra' is not allowed .* Did you mean lora"),
        ("[adapter]\nvectors = 3\n", "x.toml:2: adapter.vectors has no meaning for adapter.kind=lora"),
        ("[prior]\n[prior.more]\nx = 1\n", "x.toml:2: prior.more is not a setting"),
        ("prior = {enabled = true, wait = 3}\n", "x.toml: prior.wait is not a setting"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(text: str, at: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UserError, match=f"^{at}"):
        load_recipe(tmp_path / "x.toml")


def test_every_setting_and_section_is_explained() -> None:
    sections = {name.rpartition(".")[0] for name, _, _ in setting_names()} - {""}
    for section in sections:
        assert explain(section).startswith(f"{section}.")

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
        ({"optimizer": "lion"}, r"optimizer = 'lion' is not allowed .* Did you mean optimizer.kind=lion\?"),
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
