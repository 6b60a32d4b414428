"""Intervals over subjects cover the truth as often as they say, whichever level spreads; what is planted is found."""

from __future__ import annotations

import numpy as np
import pytest

from limner.evaluate.hierarchy import Cube, components, flipped_p, pooled, power, unit_of, units_needed
from limner.evaluate.statistics import holm, interval_p

Spreads = tuple[float, float, float, float, float]
EVEN: Spreads = (0.5, 0.5, 0.5, 0.5, 0.5)


def draw(rng: np.random.Generator, shape: tuple[int, int, int, int], spreads: Spreads, mean: float = 0.0) -> Cube:
    """Draw paired differences whose subjects, trainings, prompts, images and rest have these standard deviations."""
    s, k, p, i = shape
    sizes = ((s, 1, 1, 1), (s, k, 1, 1), (s, 1, p, 1), (s, 1, p, i), shape)
    return mean + sum((sd * rng.normal(size=size) for sd, size in zip(spreads, sizes, strict=True)), np.zeros(shape))


def all_levels(values: Cube, rng: np.random.Generator, draws: int = 400) -> tuple[float, float]:
    """Return the percentiles of a bootstrap that draws subjects, then trainings, prompts and images within them."""
    s, k, p, i = values.shape
    a = rng.integers(0, s, (draws, s))[:, :, None, None, None]
    b = rng.integers(0, k, (draws, s, k))[..., None, None]
    c = rng.integers(0, p, (draws, s, k, p))[..., None]
    means = values[a, b, c, rng.integers(0, i, (draws, s, k, p, i))].mean((1, 2, 3, 4))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("shape", [(5, 2, 6, 2), (10, 3, 4, 2)])
@pytest.mark.parametrize("spreads", [(1, 0, 0, 0, 0), EVEN, (0, 1, 0, 0, 0), (0, 0, 0, 0, 1)])
def test_the_interval_covers_the_truth_as_often_as_it_says(shape: tuple[int, int, int, int], spreads: Spreads) -> None:
    rng, trials, hits = np.random.default_rng(0), 1000, 0
    for trial in range(trials):
        found = pooled(draw(rng, shape, spreads), seed=trial, draws=400)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / trials <= 0.97, f"covered {hits / trials:.3f}"


def test_drawing_at_every_level_covers_too_little_or_too_much() -> None:
    """Why a drawn subject comes with all that is under it."""
    rng, covered = np.random.default_rng(0), {}
    for name, spreads in {"subjects": (1.0, 0, 0, 0, 0), "images": (0.0, 0, 0, 0, 1)}.items():
        ends = [all_levels(draw(rng, (5, 2, 6, 2), spreads), rng) for _ in range(200)]
        covered[name] = sum(low <= 0 <= high for low, high in ends) / len(ends)
    assert covered["subjects"] < 0.88
    assert covered["images"] > 0.985


def test_a_planted_difference_is_found_and_of_many_nulls_any_in_5_of_100_studies() -> None:
    rng, shape, spreads, trials, claims = np.random.default_rng(1), (5, 2, 6, 2), EVEN, 200, 8
    planted = sum(interval_p(pooled(draw(rng, shape, spreads, 3.0), seed=t, draws=500)) < 0.05 for t in range(100))
    wrong = 0
    for trial in range(trials):
        p = [interval_p(pooled(draw(rng, shape, spreads), seed=trial, draws=500)) for _ in range(claims)]
        wrong += min(holm(p)) < 0.05
    assert planted >= 98
    assert wrong / trials <= 0.08, f"wrong in {wrong / trials:.3f}"


def test_the_levels_spread_as_they_were_made() -> None:
    made: Spreads = (0.3, 0.2, 0.25, 0.15, 0.4)
    found = components(draw(np.random.default_rng(2), (400, 3, 6, 4), made)).spread()
    seen = (found.subject, found.training, found.prompt, found.image, found.rest)
    assert seen == pytest.approx(made, rel=0.1)


def test_a_level_that_was_not_repeated_has_no_spread_of_its_own() -> None:
    rng = np.random.default_rng(3)
    one_seed = components(draw(rng, (4, 1, 6, 2), EVEN))
    assert (one_seed.training, one_seed.image) == (None, None)
    assert one_seed.rest == pytest.approx(0.5, rel=0.6)
    assert components(draw(rng, (1, 2, 6, 2), EVEN)).subject is None
    assert components(draw(rng, (3, 1, 1, 1), EVEN)).rest is None


def test_what_is_called_detectable_is_found_in_4_of_5_studies() -> None:
    rng, shape, spreads = np.random.default_rng(4), (8, 2, 4, 2), (0.03, 0.02, 0.03, 0.02, 0.05)
    truth = power(draw(rng, (900, *shape[1:]), spreads)).spread
    assert truth.subject is not None
    within = components(draw(rng, (900, *shape[1:]), spreads)).of_subject(*shape[1:])
    large = float(np.sqrt((truth.subject**2 + within) / shape[0]) * (2.365 + 0.896))  # t of 7 degrees of freedom
    found = sum(interval_p(pooled(draw(rng, shape, spreads, large), seed=t, draws=500)) < 0.05 for t in range(400))
    assert 0.74 <= found / 400 <= 0.86


def test_more_subjects_see_smaller_differences_and_prompts_cannot_make_up_for_them() -> None:
    values = draw(np.random.default_rng(5), (6, 2, 8, 2), (0.06, 0.03, 0.05, 0.03, 0.05))
    seen = power(values)
    assert seen.detectable is not None
    counts = [seen.subjects[delta] for delta in ("0.05", "0.03", "0.02")]
    assert None not in counts
    assert counts == sorted(counts, key=lambda n: n or 0)
    assert seen.prompts["0.02"] is None, "the subjects' own spread stays however many prompts there are"
    assert units_needed(values, seen.detectable * 0.999) == 7
    assert (units_needed(values, 0.05, claims=8) or 0) > (units_needed(values, 0.05) or 0)


def test_of_one_subject_the_prompts_are_the_unit() -> None:
    values = draw(np.random.default_rng(6), (1, 2, 8, 3), EVEN)
    found = pooled(values, seed=0)
    assert (found.unit, found.n_units, found.n_images) == ("prompt", 8, 48)
    seen = power(values)
    assert set(seen.subjects.values()) == {None}
    assert seen.detectable is not None
    assert [unit_of(shape) for shape in ((2, 1, 1, 1), (1, 2, 1, 3), (1, 2, 1, 1))] == ["subject", "image", "training"]


def test_the_sign_flip_test_counts_subjects() -> None:
    values = np.abs(draw(np.random.default_rng(7), (6, 2, 5, 2), EVEN, 5.0))
    assert flipped_p(values, seed=0) == 2 / 2**6
