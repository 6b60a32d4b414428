from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.evaluate.statistics import finding, holm, interval, interval_p, sign_flip_p
from limner.metrics.scores import Better, Interval


def prompts(n_prompts: int, images: int) -> list[str]:
    return [f"subject/{p}" for p in range(n_prompts) for _ in range(images)]


def draw(rng: np.random.Generator, n_prompts: int, images: int, *, between: float, mean: float = 0.0) -> np.ndarray:
    """Draw values of unit variance, of which the share `between` lies between prompts."""
    of_prompt = rng.normal(size=(n_prompts, 1)) * np.sqrt(between)
    return (mean + of_prompt + rng.normal(size=(n_prompts, images)) * np.sqrt(1 - between)).ravel()


@pytest.mark.parametrize(("n_prompts", "images"), [(8, 4), (25, 4)])
@pytest.mark.parametrize("between", [0.0, 0.5])
def test_the_interval_covers_the_truth_as_often_as_it_says(n_prompts: int, images: int, between: float) -> None:
    rng = np.random.default_rng(0)
    names = prompts(n_prompts, images)
    trials = 1000
    hits = 0
    for trial in range(trials):
        found = interval(draw(rng, n_prompts, images, between=between), names, seed=trial, draws=1000)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / trials <= 0.97, f"covered {hits / trials:.3f}"


def test_a_bootstrap_over_images_alone_would_claim_too_much() -> None:
    rng = np.random.default_rng(0)
    values = draw(rng, 10, 4, between=0.8)
    right = interval(values, prompts(10, 4), seed=0)
    wrong = interval(values, [f"subject/{i}" for i in range(40)], seed=0)
    assert right.high is not None
    assert right.low is not None
    assert wrong.high is not None
    assert wrong.low is not None
    assert right.high - right.low > 1.4 * (wrong.high - wrong.low)


def test_a_planted_difference_is_found_and_a_planted_null_is_not() -> None:
    rng = np.random.default_rng(1)
    names = prompts(10, 4)
    findings = {"planted": 0, "null": 0}
    for trial in range(200):
        for name, mean in (("planted", 1.0), ("null", 0.0)):
            values = draw(rng, 10, 4, between=0.3, mean=mean)
            found = finding(interval(values, names, seed=trial, draws=1000), better="higher")
            findings[name] += found == "better"
    assert findings["planted"] >= 190
    assert findings["null"] <= 12  # 2.5 % of 200 are expected on this side


def test_the_sign_flip_test_is_as_often_wrong_as_it_says() -> None:
    rng = np.random.default_rng(2)
    p = [sign_flip_p(draw(rng, 8, 3, between=0.5), prompts(8, 3), seed=0) for _ in range(600)]
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07


@pytest.mark.parametrize(
    ("values", "p"), [([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2 / 64), ([1.0, -1.0], 1.0), ([0.0, 0.0], 1.0)]
)
def test_the_sign_flip_test_is_exact_for_few_prompts(values: list[float], p: float) -> None:
    assert sign_flip_p(np.array(values), prompts(len(values), 1), seed=0) == p


def test_the_sign_flip_test_draws_where_it_cannot_count() -> None:
    rng = np.random.default_rng(3)
    values = draw(rng, 30, 2, between=0.5)
    assert sign_flip_p(values, prompts(30, 2), seed=0) == sign_flip_p(values, prompts(30, 2), seed=0)
    assert sign_flip_p(values + 3, prompts(30, 2), seed=0) < 0.001


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.floats(-0.5, 0.5))
def test_the_interval_holds_its_mean_and_moves_with_the_values(values: list[float], shift: float) -> None:
    array, names = np.array(values), prompts(len(values), 1)
    here, there = (interval(array + s, names, seed=0, draws=200) for s in (0.0, shift))
    assert here.low is not None
    assert here.high is not None
    assert there.low is not None
    assert there.high is not None
    assert here.low <= here.mean <= here.high
    assert there.low - here.low == pytest.approx(shift, abs=1e-9)
    assert there.high - here.high == pytest.approx(shift, abs=1e-9)


def test_equal_values_have_no_width() -> None:
    found = interval(np.zeros(12), prompts(6, 2), seed=0)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_one_prompt_makes_the_images_the_unit() -> None:
    found = interval(np.array([0.1, 0.2, 0.3]), prompts(1, 3), seed=0)
    assert (found.unit, found.n_units) == ("image", 3)
    assert interval(np.array([0.1]), prompts(1, 1), seed=0).low is None


@pytest.mark.parametrize(
    ("low", "high", "units", "better", "expected"),
    [
        (0.1, 0.3, 8, "higher", "better"),
        (0.1, 0.3, 8, "lower", "worse"),
        (-0.3, -0.1, 8, "lower", "better"),
        (-0.1, 0.3, 8, "higher", "no difference"),
        (0.1, 0.3, 8, "neither", "higher"),
        (-0.3, -0.1, 8, "neither", "lower"),
        (0.1, 0.3, 5, "higher", "not conclusive"),
        (None, None, 1, "higher", "not conclusive"),
    ],
)
def test_findings(low: float | None, high: float | None, units: int, better: Better, expected: str) -> None:
    mean = 0.2 if low is None or high is None else (low + high) / 2
    given_interval = Interval(mean=mean, low=low, high=high, n_images=16, n_units=units, unit="prompt")
    assert finding(given_interval, better=better) == expected


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_out_zero(values: list[float]) -> None:
    found = interval(np.array(values), prompts(len(values), 1), seed=0, draws=200)
    assert found.low is not None
    assert found.high is not None
    p = interval_p(found)
    assert 0 <= p <= 1
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (found.low > 0 or found.high < 0)


def test_without_an_interval_nothing_is_found() -> None:
    assert interval_p(interval(np.array([0.3]), prompts(1, 1), seed=0)) == 1
    assert interval_p(interval(np.full(6, 0.3), prompts(6, 1), seed=0)) == 0


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # the worked example of R's p.adjust
        ([0.02], [0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(p: list[float], corrected: list[float]) -> None:
    assert holm(p) == pytest.approx(corrected)


def test_of_many_claims_at_once_any_is_wrong_in_5_of_100_cases() -> None:
    rng = np.random.default_rng(4)
    names, trials, claims = prompts(8, 3), 300, 9
    plain = held = 0
    for trial in range(trials):
        p = [interval_p(interval(draw(rng, 8, 3, between=0.5), names, seed=trial, draws=1000)) for _ in range(claims)]
        plain += min(p) < 0.05
        held += min(holm(p)) < 0.05
    assert plain / trials > 0.25, "the case needs a correction"
    assert held / trials <= 0.08, f"wrong in {held / trials:.3f}"
