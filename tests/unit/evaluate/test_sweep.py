"""Which variant of a sweep is taken, where that is known, and that nothing is taken where nothing is shown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from limner.evaluate.statistics import interval
from limner.evaluate.sweep import choose
from limner.metrics.course import Course, Curve
from limner.metrics.questions import CLASS_DRIFT, COPYING, SUBJECT_FIDELITY
from limner.metrics.scores import Level

PROMPTS = tuple(f"subject/{image // 2}" for image in range(16))
OF_PROMPT = np.repeat(np.random.default_rng(7).normal(0.5, 0.1, 8), 2)


def curve(kind: str, values: Mapping[int, np.ndarray], levels: tuple[Level, ...] = ()) -> Curve:
    return Curve(
        kind=kind, encoder="someone", title=kind, says="", better="lower" if kind == CLASS_DRIFT.kind else "higher",
        levels=levels, prompts=PROMPTS, values={step: tuple(row.tolist()) for step, row in values.items()},
        scores={step: interval(row, PROMPTS, seed=0) for step, row in values.items()},
    )  # fmt: skip


def judged(gain: float, drift: float, *, seed: int, copying: float = 0.5, spread: float = 0.01) -> tuple[Course, int]:
    """Return the course of a variant that gains so much likeness and moves the class so far, at step 9."""
    random = np.random.default_rng(seed)

    def noisy(mean: float) -> np.ndarray:
        return OF_PROMPT + mean + random.normal(0, spread, 16)

    limit = Level(name="closest_pair", title="two pictures", value=0.9, pairs=1, is_limit=True)
    curves = (
        curve(SUBJECT_FIDELITY.kind, {0: OF_PROMPT, 9: noisy(gain)}),
        curve(CLASS_DRIFT.kind, {0: np.zeros(16), 9: np.abs(random.normal(drift, 1e-3, 16))}),
        curve(COPYING.kind, {0: np.zeros(16), 9: np.full(16, copying)}, (limit,)),
    )
    return Course(key="same", curves=curves, knee=None), 9


@pytest.mark.parametrize("seed", range(5))
def test_the_one_is_taken_that_forgets_least_of_those_that_cannot_be_told_from_the_best(seed: int) -> None:
    """The wild one is no more alike by anything that shows, and forgets more: it is not taken."""
    found = choose({
        "wild": judged(0.201, 0.4, seed=seed), "weak": judged(0.05, 0.01, seed=seed + 10),
        "good": judged(0.2, 0.1, seed=seed + 20), "late": judged(0.08, 0.2, seed=seed + 30),
    })  # fmt: skip
    assert found.order == ("weak", "good", "late", "wild")
    assert found.taken == "good"
    assert found.standing == {"good": "taken", "weak": "less alike", "late": "less alike", "wild": "not conclusive"}
    assert found.words[0].startswith("good is taken: likeness 0.")
    assert "has moved the class by 0.100." in found.words[0]
    assert found.words[1].startswith("Not conclusive: wild cannot be told from it in likeness; it differs by ")
    assert found.words[-1].startswith(
        "The rule: beginning with the base, and going on from the variant that forgets least"
    )
    assert list(found.metrics[0].arms) == ["base", "weak", "good", "late", "wild"]


def test_more_likeness_that_shows_is_taken_whatever_it_forgets() -> None:
    found = choose({"good": judged(0.2, 0.1, seed=1), "best": judged(0.3, 0.4, seed=2)})
    assert found.taken == "best"
    assert found.standing["good"] == "less alike"


def test_nothing_is_taken_where_none_is_above_the_base() -> None:
    found = choose({"one": judged(0.0, 0.1, seed=1), "two": judged(-0.1, 0.2, seed=2)})
    assert found.taken is None
    assert found.standing == {"one": "not conclusive", "two": "less alike"}
    assert found.words[0].startswith("No choice can be made: ")
    assert "Not conclusive; none is taken." in found.words[0]


def test_several_that_cannot_be_told_apart_and_copies_are_said() -> None:
    same = {name: judged(0.2, drift, seed=3, copying=0.95) for name, drift in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    found = choose(same)
    assert found.taken == "a"
    assert found.words[1].startswith("Not conclusive: 2 others cannot be told from it in likeness; the best of them by")
    assert found.words[2].startswith("Look at its pictures: on average they come nearer to a training picture")


def test_one_that_forgets_less_but_is_not_above_the_base_is_passed_over_and_said() -> None:
    wide = {"spread": 0.3}
    found = choose({"early": judged(0.1, 0.01, seed=4, **wide), "taken": judged(0.3, 0.2, seed=5, spread=0.05)})
    assert (found.taken, found.standing["early"]) == ("taken", "not conclusive")
    assert found.words[2].startswith("early would forget less, but show no more likeness than what was taken before.")


def test_without_pictures_of_the_class_the_order_is_the_one_that_was_given() -> None:
    def plain(gain: float, seed: int) -> tuple[Course, int]:
        course, step = judged(gain, 0.1, seed=seed)
        return course.model_copy(update={"curves": course.curves[:1]}), step

    found = choose({"first": plain(0.2, 1), "second": plain(0.2, 2)})
    assert found.taken == "first"
    assert "what each forgets is not known" in found.words[-1]
