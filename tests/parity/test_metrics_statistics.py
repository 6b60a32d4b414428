"""Intervals and tests against SciPy, where SciPy has the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from limner.evaluate.statistics import interval, rate_interval, sign_flip_p


@pytest.mark.parametrize("n_prompts", [6, 10, 25])
def test_with_equal_prompts_the_interval_is_students_on_their_means(n_prompts: int) -> None:
    rng = np.random.default_rng(n_prompts)
    values = rng.normal(size=(n_prompts, 4)) + rng.normal(size=(n_prompts, 1))
    means = values.mean(1)
    expected = stats.t.interval(0.95, n_prompts - 1, loc=means.mean(), scale=stats.sem(means))
    names = [f"subject/{p}" for p in range(n_prompts) for _ in range(4)]
    found = interval(values.ravel(), names, seed=0)
    # The bootstrap's standard error has a Monte Carlo error of about 1 / sqrt(2 * 10,000) = 0.7 %.
    assert (found.low, found.high) == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))


@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0])
def test_the_sign_flip_test_is_scipys_permutation_test_of_paired_samples(mean: float) -> None:
    rng = np.random.default_rng(3)
    tuned, base = rng.normal(mean, 1, 10), rng.normal(0, 1, 10)
    expected = stats.permutation_test(
        (tuned, base), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    found = sign_flip_p(tuned - base, [f"subject/{p}" for p in range(10)], seed=0)
    assert found == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n_prompts", [2, 6, 25])
def test_a_rate_of_all_or_nothing_has_scipys_exact_interval(n_prompts: int, value: float) -> None:
    expected = stats.binomtest(round(value * n_prompts), n_prompts).proportion_ci(method="exact")
    names = [f"subject/{p}" for p in range(n_prompts) for _ in range(3)]
    found = rate_interval(np.full(3 * n_prompts, value), names, seed=0)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_rate_between_has_the_bootstraps_interval_within_0_and_1() -> None:
    names = [f"subject/{p}" for p in range(8) for _ in range(2)]
    few, half = np.zeros(16), np.arange(16) % 4 < 2
    few[0] = 1
    found, plain = (take(few, names, seed=0) for take in (rate_interval, interval))
    assert plain.low is not None
    assert plain.low < 0
    assert (found.low, found.high, found.mean) == (0, plain.high, plain.mean)
    same = half.astype(float)
    assert rate_interval(same, names, seed=0) == interval(same, names, seed=0)
