from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.metrics.scores import Better
from limner.report.plane import APART, front, planes
from tests.unit.report.test_verdict import metric, scores

NUMBER = st.floats(-1, 1, allow_nan=False)


def test_the_front_holds_those_that_no_other_beats_in_both() -> None:
    points = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.4, 0.4), "d": (0.3, 0.4), "e": (0.0, 0.0)}
    assert front(points) == ("a", "b", "c")


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.tuples(NUMBER, NUMBER), min_size=1, max_size=6))
def test_somebody_is_always_on_the_front_and_all_others_are_beaten_by_one_of_it(
    points: dict[str, tuple[float, float]],
) -> None:
    best = front(points)
    assert best
    for name in points.keys() - set(best):
        assert any(all(a >= b for a, b in zip(points[one], points[name], strict=True)) for one in best)


@pytest.mark.parametrize(("better", "higher"), [("higher", True), ("lower", False)])
def test_up_is_better_even_where_less_is(better: Better, higher: bool) -> None:
    found = scores(
        metric("subject_fidelity", 0.5, 0.8, "better"), metric("prompt_following", 0.2, 0.6, "better", better=better)
    )
    (plane,) = planes(found, {})
    base, tuned = plane.marks
    assert base.x < tuned.x
    assert (base.y < tuned.y) == higher
    for mark in plane.marks:
        assert 0 <= mark.upright[0] <= mark.y <= mark.upright[1] <= 100
        assert 0 <= mark.across[0] <= mark.x <= mark.across[1] <= 100


def test_names_do_not_stand_on_one_another() -> None:
    found = scores(
        metric("subject_fidelity", 0.5, 0.5, "no difference"), metric("prompt_following", 0.3, 0.3, "better")
    )
    (plane,) = planes(found, {})
    base, tuned = plane.marks
    assert base.y == tuned.y
    assert abs(base.name_y - tuned.name_y) >= APART


def test_no_plane_without_both_questions() -> None:
    assert planes(scores(metric("subject_fidelity", 0.5, 0.6, "better")), {}) == []
