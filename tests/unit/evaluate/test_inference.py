"""The cost of an adapter as a ratio: its interval holds what it says on a machine that is disturbed."""

from __future__ import annotations

import numpy as np
import pytest

from limner.evaluate.inference import LEAST_FOR_P95, measurements, ratio_to
from limner.metrics.inference import Pair, Taken


def rounds(rng: np.random.Generator, count: int, cost: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw seconds of an arm and of the base: a slow drift hits both alike, noise and rare jumps each on its own."""
    drift = 1 + 0.5 * np.sin(np.linspace(0, 3, count))
    alone = [rng.lognormal(0, 0.08, count) * (1 + (rng.random(count) < 0.05)) for _ in range(2)]
    return cost * drift * alone[0], drift * alone[1]


@pytest.mark.parametrize("count", [6, 20])
def test_the_interval_covers_the_true_cost_as_often_as_it_says(count: int) -> None:
    rng, hits, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        found = ratio_to(*rounds(rng, count, 1.2))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.2 <= found.high
    assert 0.94 <= hits / trials <= 0.98, f"covered {hits / trials:.3f}"


def test_a_planted_cost_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(1)
    found = [[ratio_to(*rounds(rng, 20, cost)).conclusive for _ in range(40)] for cost in (1.3, 1.0)]
    assert sum(found[0]) >= 36
    assert sum(found[1]) <= 6


def test_one_disturbed_round_does_not_move_the_cost() -> None:
    base = np.linspace(1.0, 1.01, 20)
    arm = 1.2 * base[::-1]
    calm, disturbed = ratio_to(arm, base), ratio_to(arm, np.where(np.arange(20) == 3, 5.0, base))
    assert calm.ratio == pytest.approx(1.2, rel=0.001)
    assert disturbed.ratio == pytest.approx(1.2, rel=0.005)
    assert disturbed.conclusive


def test_the_interval_is_that_of_the_tables_of_signed_ranks() -> None:
    # the 2.5 % points of Wilcoxon's T+: 0 for 6 values, 3 for 8, 8 for 10, 52 for 20 (Hollander and Wolfe, table A.4)
    differences = np.random.default_rng(0).normal(size=20)
    for count, cut in ((6, 0), (8, 3), (10, 8), (20, 52)):
        own = differences[:count]
        means = sorted((a + b) / 2 for i, a in enumerate(own) for b in own[i:])
        found = ratio_to(np.exp(own), np.ones(count))
        assert (found.low, found.high) == pytest.approx((np.exp(means[cut]), np.exp(means[-1 - cut])))


def test_few_rounds_claim_nothing() -> None:
    for count in range(1, 6):
        found = ratio_to(np.full(count, 2.0), np.ones(count))
        assert (found.ratio, found.low, found.high, found.conclusive) == (pytest.approx(2.0), None, None, False)


def test_times_are_of_one_picture_and_half_a_round_does_not_count() -> None:
    pair = Pair(batch=4, steps=2)
    taken = {
        ("merged", pair): [Taken(8.0, 0.4, 6.0, 1.6, 40.0)] * LEAST_FOR_P95 + [Taken(999.0, 1.0, 1.0, 1.0)],
        ("base", pair): [Taken(4.0, 0.4, 2.0, 1.6)] * LEAST_FOR_P95,
        ("merged", Pair(1, 1)): [Taken(1.0, 0.1, 0.1, 0.1)],
    }
    base, merged = measurements(taken, ["base", "merged"])
    assert (base.arm, base.median_s, base.p95_s, base.pictures_per_s, base.joules) == ("base", 1.0, 1.0, 1.0, None)
    assert base.to_base is None
    assert (merged.text_s, merged.denoise_s, merged.decode_s, merged.joules) == (0.1, 1.5, 0.4, 10.0)
    assert len(merged.seconds) == LEAST_FOR_P95
    assert merged.to_base is not None
    assert merged.to_base.ratio == pytest.approx(2.0)
    assert merged.to_base.conclusive
    taken["base", pair].pop()
    assert [one.p95_s for one in measurements(taken, ["base", "merged"])] == [None, None]
