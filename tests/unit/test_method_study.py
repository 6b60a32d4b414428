"""The study of the methods is fair as far as its recipes say, and what is read from it is right."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.method_study import ARMS, SHARED, SUBJECTS
from benchmarks.prior_preservation import moved, ratio_interval, told
from limner.families.source import ASSETS
from limner.recipe import load_recipe


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_sees_as_many_pictures_as_the_others_and_none_of_the_questions(arm: str) -> None:
    recipe = load_recipe("demo", {**SHARED, **ARMS[arm]})
    assert (recipe.steps, recipe.batch) == (150, 4)
    asked = {*recipe.evaluation.class_prompts}
    assert len(asked & {*recipe.prior.prompts}) == 1, "only the class itself is both preserved and asked for"
    assert not {*recipe.pictures.templates} & {*recipe.evaluation.prompts} - {"a picture of a {token}"}


def test_every_subject_has_pictures() -> None:
    assert all(len(list((ASSETS / "demo" / folder).glob("*.png"))) == 5 for folder in SUBJECTS.values())


def test_means_are_of_each_subject_by_metric_and_arm(tmp_path: Path) -> None:
    rows = [
        ("a", 0, "x", "class_drift.e", 1.0),
        ("a", 1, "x", "class_drift.e", 3.0),
        ("a", 0, "y", "class_drift.e", 4.0),
        ("b", 0, "x", "class_drift.e", 1.0),
        ("b", 0, "y", "class_drift.e", 6.0),
        ("a", 0, "x", "copies.e", 9.0),
    ]
    with (tmp_path / "study.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("subject", "seed", "arm", "metric", "value"), *rows])
    found = moved(tmp_path)
    assert found == {"class_drift.e": {"x": {"a": 2.0, "b": 1.0}, "y": {"a": 4.0, "b": 6.0}}}
    assert told(found["class_drift.e"]["x"], found["class_drift.e"]["y"])["ratio"] == 0.3


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        lost = 1 + 0.3 * draws.standard_normal(6)
        low, high = ratio_interval(0.4 * lost + 0.1 * draws.standard_normal(6), lost)
        covered += low <= 0.4 <= high
    assert 0.93 < covered / 2000 < 0.97
    assert ratio_interval(np.ones(6), np.array([5.0, -4, 3, -5, 4, -3])) == (-np.inf, np.inf)
