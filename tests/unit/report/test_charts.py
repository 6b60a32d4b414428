from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.report.charts import loss_plot, nice_ticks, smooth
from limner.report.numbers import in_bytes, in_time, number


@given(st.floats(-10, 10), st.floats(1e-4, 20))
def test_ticks_enclose_what_they_measure_at_equal_distances(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + 1e-6
    assert ticks[-1] >= low + span - 1e-6
    assert 2 <= len(ticks) <= 8
    gaps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3)


def test_ticks_are_round() -> None:
    assert nice_ticks(0.03, 0.97) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_smoothing_keeps_a_constant_and_the_steps() -> None:
    points = [(step, 0.3) for step in range(1, 50)]
    assert [s for s, _ in smooth(points)] == [s for s, _ in points]
    assert all(value == pytest.approx(0.3) for _, value in smooth(points))


def test_a_run_without_prior_has_one_curve() -> None:
    steps = [{"step": s, "loss": 1 / s, "instance_loss": 1 / s, "prior_loss": None} for s in range(1, 10)]
    plot = loss_plot({"tuned": steps})
    assert plot is not None
    assert [curve.name for curve in plot.curves] == ["the subject's pictures"]


def test_the_loss_on_held_out_pictures_is_a_curve_of_its_own() -> None:
    steps = [{"step": s, "instance_loss": 1 / s} for s in range(1, 10)]
    held_out = [{"step": s, "validation_loss": 0.5} for s in (3, 6, 9)]
    plot = loss_plot({"tuned": [*steps, *held_out]})
    assert plot is not None
    assert [(curve.kind, curve.last) for curve in plot.curves][1] == ("held-out", 0.5)
    assert plot.curves[1].smooth.count(",") == 3


def test_no_steps_no_curve() -> None:
    assert loss_plot({"tuned": []}) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (59.0, "59 s"), (64.0, "1 min 04 s"), (3600.0, "1 h 00 min"), (119.7, "2 min 00 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12.0, "12 B"), (3_290_000.0, "3.3 MB"), (485_112.0, "485 kB"), (2e9, "2.00 GB")]
)
def test_sizes(count: float, text: str) -> None:
    assert in_bytes(count) == text


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (-0.0123, "−0.012"), (0.0, "0.00"), (0.0951, "0.10")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
