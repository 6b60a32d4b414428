"""The prompts that a few-step run is judged on: like those that it learns from, and none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limner.errors import UserError
from limner.recipe import Recipe, load_recipe
from limner.taught import TEMPLATES, prompts_of, with_prompts_to_look_at

JUDGED = {"validation.every_steps": 2, "distill.images": 200}


def recipe(**settings: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return with_prompts_to_look_at(load_recipe("few-step", {**JUDGED, **given}))


def file_of(folder: Path, count: int) -> Path:
    place = folder / "prompts.txt"
    place.write_text("\n".join(f"scene {i}" for i in range(count)), encoding="utf-8")
    return place


@pytest.mark.parametrize("words", [["dog"], ["dog", "red car"], [f"thing{i}" for i in range(40)]], ids=len)
def test_class_words_come_in_other_prompts_than_those_learned_from(words: list[str]) -> None:
    found = recipe(distill__words=words)
    judged = found.validation.prompts
    assert len(set(judged)) == len(judged) == (10 if len(words) == 1 else 16)
    assert not {*judged} & {*prompts_of(found)}
    assert all(any(word in prompt for word in words) for prompt in judged)
    assert not any("{" in prompt for prompt in judged)
    assert found.validation_requests[0].prompt == judged[0]
    assert len(found.validation_requests) == 2 * len(judged), "nothing of a class that has no name"
    assert all(template.count("{word}") == 1 for template in TEMPLATES)


def test_lines_that_are_not_drawn_are_judged_all_over_the_file(tmp_path: Path) -> None:
    found = recipe(distill__prompts=str(file_of(tmp_path, 100)), distill__images=20)
    judged = [int(prompt.removeprefix("scene ")) for prompt in found.validation.prompts]
    assert len(judged) == 16
    assert judged == sorted(judged)
    assert judged[0] == 20
    assert judged[-1] > 90
    few = recipe(distill__prompts=str(file_of(tmp_path, 26)), distill__images=20)
    assert few.validation.prompts == tuple(f"scene {i}" for i in range(20, 26))
    with pytest.raises(UserError, match="leaves 5 to validate on. Add lines until 6 or more are left, set distill.im"):
        recipe(distill__prompts=str(file_of(tmp_path, 25)), distill__images=20)


def test_what_is_reported_is_not_judged(tmp_path: Path) -> None:
    place = file_of(tmp_path, 30)
    found = recipe(distill__prompts=str(place), distill__images=20, evaluation__other_prompts=["scene 21"])
    assert "scene 21" not in found.validation.prompts


def test_what_the_user_gave_stays_and_a_subject_is_judged_as_ever(tmp_path: Path) -> None:
    own = [f"a dog {i}" for i in range(6)]
    assert recipe(distill__words=["dog"], validation__prompts=own).validation.prompts == tuple(own)
    plain = load_recipe("few-step", {})
    beneath = recipe(distill__adapter=str(tmp_path), pictures__class_noun="dog", pictures__token="sks")
    assert beneath.validation.prompts == plain.validation.prompts
    assert recipe(distill__words=["dog"], validation__every_steps=0).validation.prompts == plain.validation.prompts


def test_a_base_that_knows_a_subject_is_asked_for_it_by_its_words() -> None:
    """A whole model of a subject, or a class: prompts are scored without the token, and none is learned from."""
    found = recipe(pictures__class_noun="dog", pictures__token="sks", preview__every_steps=5)
    drawn = {(one.set, one.prompt, one.plain_prompt) for one in found.validation_requests}
    assert ("subject", "a sks dog on a sofa", "a dog on a sofa") in drawn
    assert ("class", "a dog", "a dog") in drawn
    assert not {prompt for _, prompt, _ in drawn} & {*prompts_of(found)}
    assert len({prompt for kind, prompt, _ in drawn if kind == "subject"}) == 6
    assert found.preview.prompt == "a photo of {subject}"


def test_a_preview_shows_what_is_learned_from() -> None:
    assert recipe(distill__words=["dog"], preview__every_steps=5).preview.prompt == "a photo of a dog"
    assert recipe(distill__words=["dog"], preview__every_steps=5, preview__prompt="x").preview.prompt == "x"
