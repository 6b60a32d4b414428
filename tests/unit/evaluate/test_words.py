from __future__ import annotations

from limner.evaluate.words import difference_in_words
from limner.metrics.scores import Interval


def found(mean: float, half: float | None, *, images: int = 24, units: int = 8, unit: str = "prompt") -> Interval:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Interval(mean=mean, low=low, high=high, n_images=images, n_units=units, unit=unit)  # pyright: ignore


def test_a_finding_comes_with_its_interval_and_its_numbers() -> None:
    assert difference_in_words(found(0.3, 0.05), "better") == "Better by +0.300 [+0.250, +0.350] (24 pairs, 8 prompts)."


def test_zero_inside_the_interval_is_no_difference() -> None:
    text = difference_in_words(found(0.01, 0.05), "no difference")
    assert text == "No difference found: +0.010 [-0.040, +0.060] includes 0 (24 pairs, 8 prompts)."


def test_nothing_at_all_is_said_as_such() -> None:
    text = difference_in_words(found(0.0, 0.0), "no difference")
    assert text == "No difference: every pair of images has the same value (24 pairs, 8 prompts)."


def test_too_few_images_claim_nothing() -> None:
    text = difference_in_words(found(0.02, 0.09, images=4, units=4, unit="image"), "not conclusive")
    assert "only 4 images per side of one prompt: interval is ±0.090, no difference can be claimed" in text


def test_one_image_has_no_interval_to_show() -> None:
    text = difference_in_words(found(0.02, None, images=1, units=1, unit="image"), "not conclusive")
    assert text == "Not conclusive: only 1 image per side, no interval can be given and no difference can be claimed."


def test_drift_has_a_size_and_no_test() -> None:
    text = difference_in_words(found(0.02, 0.01), "not tested")
    assert text == "Moved by 0.020 [0.010, 0.030] from the base."


def test_one_prompt_is_said() -> None:
    text = difference_in_words(found(0.3, 0.05, images=8, units=8, unit="image"), "worse")
    assert text.endswith("(8 pairs of one prompt).")
