"""Arms and subjects are read as they are written, and what contradicts itself is refused with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.arms import check_arms, parse_arms, subjects_of
from limner.budgets import read_budget
from limner.errors import UserError

NOUN = {"pictures.class_noun": "dog"}


def test_arms_are_names_files_and_settings_in_brackets() -> None:
    text = "base, lora,dreambooth[prior.enabled=false,learning_rate=1e-6],a/mine.toml,lora[adapter.targets=['a','b']]"
    arms = parse_arms(text)
    assert [arm.name for arm in arms] == [
        "lora", "dreambooth[prior.enabled=false,learning_rate=1e-6]", "mine", "lora[adapter.targets=['a','b']]",
    ]  # fmt: skip
    assert arms[1].settings == {"prior.enabled": False, "learning_rate": 1e-6}
    assert arms[3].settings == {"adapter.targets": ["a", "b"]}
    assert arms[1].folder == "dreambooth-prior.enabled=false-learning_rate=1e-6"
    assert len({arm.folder for arm in arms}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora,lora", "lora is named twice"),
        ("base", "names nothing but the base. Use .*lora"),
        ("lora[steps=2", "half a pair of brackets"),
        ("lora[steps=2]x", "not NAME or NAME"),
        ("lora[rank]", "'rank': is not a setting"),
    ],
)
def test_arms_that_cannot_be_read_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arms(text)


def test_a_folder_of_subjects_names_token_and_class(tmp_path: Path) -> None:
    for name in ("sks dog", "sks cat", "_ignored"):
        (tmp_path / name).mkdir()
    cat, dog = subjects_of([], tmp_path)
    assert (cat.name, dog.name) == ("sks cat", "sks dog")
    lora, words = parse_arms("lora,textual-inversion")
    shared = {"evaluation.pictures": str(tmp_path / "held_out"), "pictures.token": "ohwx"}
    assert cat.settings(lora, shared) == {
        "pictures.token": "sks", "pictures.class_noun": "cat",
        "evaluation.pictures": str(tmp_path / "held_out" / "sks cat"),
    }  # fmt: skip
    assert "pictures.token" not in cat.settings(words, {}), "a new word keeps its own token"
    assert words.load(cat.settings(words, {})).pictures.token == "<subject>"


def test_a_setting_for_all_has_to_do_something_somewhere() -> None:
    arms = parse_arms("lora,dreambooth")
    subject = subjects_of([Path("dog")], None)[0]
    assert check_arms(arms, subject, {**NOUN, "prior.count": 70}) == []
    with pytest.raises(UserError, match=r"prior.count: has no effect in any arm, because prior.enabled is false"):
        check_arms(arms[:1], subject, {**NOUN, "prior.count": 7})
    with pytest.raises(UserError, match=r"arm dreambooth: .*adapter.rank has no meaning .*NAME\[adapter.rank=...\]"):
        check_arms(arms, subject, {**NOUN, "adapter.rank": 4})
    with pytest.raises(UserError, match="seed: is no setting of a comparison. Give the training seeds with --seeds"):
        check_arms(arms, subject, {**NOUN, "seed": 4})


def test_a_budget_has_an_amount_and_no_arm_another() -> None:
    arms = parse_arms("lora,dreambooth")
    assert read_budget({"steps": 4}, arms)[0].kind == "own"
    budget, shared = read_budget({"budget": "time", "seconds": 90, "batch": 2}, arms)
    assert (budget.kind, budget.amount, shared) == ("time", "90 s", {"batch": 2})
    assert read_budget({"budget": "memory", "fit": "8GB"}, arms)[0].words == "Every arm was made to fit into 8GB."
    assert read_budget({"budget": "steps", "steps": 80}, arms)[0].amount == "80 steps"


@pytest.mark.parametrize(
    ("settings", "arms", "message"),
    [
        ({"budget": "watts"}, "lora", "budget=watts: is not a budget. Use steps, time, memory"),
        ({"budget": "steps"}, "lora", "needs to know how much. .*steps=800"),
        ({"budget": "memory", "fit": True}, "lora", "needs to know how much. .*fit=8GB"),
        ({"budget": "time", "seconds": -1}, "lora", "needs to know how much. .*seconds=600"),
        ({"budget": "time", "seconds": 9, "steps": 4}, "lora", "steps: has no effect with budget=time"),
        ({"seconds": 9}, "lora", "seconds=9: has no effect without budget=time"),
        ({"budget": "steps", "steps": 4}, "lora[steps=8]", r"arm lora\[steps=8\]: sets steps, and budget=steps"),
    ],
)
def test_budgets_that_say_nothing_are_refused(settings: dict[str, object], arms: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_budget(settings, parse_arms(arms))
