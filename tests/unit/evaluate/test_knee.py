"""The knee of courses whose knee is known, and of such as have none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from limner.evaluate.knee import find_knee, places_of

PROMPTS = [f"subject/{image // 2}" for image in range(16)]
STEPS = range(0, 110, 10)


def course(mean: Callable[[int], float], *, seed: int, spread: float = 0.01) -> dict[int, list[float]]:
    """Return likeness over the steps: a mean, prompts that differ much from one another, and noise of each step."""
    random = np.random.default_rng(seed)
    of_prompt = np.repeat(random.normal(0.5, 0.1, 8), 2)
    return {step: (of_prompt + mean(step) + random.normal(0, spread, 16)).tolist() for step in STEPS}


def grows(step: int) -> float:
    return 0.01 * step


def grows_then_stays(step: int) -> float:
    return 0.01 * min(step, 50)


def grows_then_falls(step: int) -> float:
    return 0.5 - 0.01 * abs(step - 50)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("mean", "knee"), [(grows_then_stays, 50), (grows_then_falls, 50), (grows, 100)])
def test_the_knee_is_where_likeness_stops_growing(mean: Callable[[int], float], knee: int, seed: int) -> None:
    found = find_knee(course(mean, seed=seed), course(grows, seed=seed + 9), PROMPTS, PROMPTS, seed=0)
    assert found
    assert (found.step, found.is_conclusive, found.is_growing) == (knee, True, knee == 100)
    if knee == 50:
        assert found.waited == 5
        assert found.is_forgetting
        assert "From step 50 on likeness grows no more" in found.words
        assert "Forgetting goes on: by step 100 the class has moved on by +0." in found.words
    else:
        assert "more steps may give more" in found.words


def test_noise_alone_allows_no_choice() -> None:
    """Of 40 courses without any growth, looked at ten times each, at most 4 are taken for one (1 or 2 are expected)."""
    found = [find_knee(course(lambda step: 0, seed=seed, spread=0.03), None, PROMPTS, seed=0) for seed in range(40)]
    wrong = [one for one in found if one is None or one.is_conclusive]
    assert len(wrong) <= 4
    right = next(one for one in found if one and not one.is_conclusive)
    assert right.step == 100
    assert "No choice can be made" in right.words
    assert "Not conclusive; the last step, 100, is taken" in right.words


def test_forgetting_that_has_stopped_is_not_said_to_go_on() -> None:
    found = find_knee(course(grows_then_stays, seed=1), {step: [0.1] * 16 for step in STEPS}, PROMPTS, PROMPTS, seed=0)
    assert found
    assert found.step == 50
    assert not found.is_forgetting
    assert "does not go on" in found.words


def test_slow_growth_adds_up_until_it_shows() -> None:
    """No step is above its neighbour by more than its interval, and yet the last ones are above the first."""
    slow = course(lambda step: 0.0006 * step, seed=0, spread=0.02)
    found = find_knee(slow, None, PROMPTS, seed=0)
    assert found
    assert found.is_conclusive
    neighbours = [find_knee({0: slow[step - 10], 10: slow[step]}, None, PROMPTS, seed=0) for step in STEPS[1:]]
    assert not any(one.is_conclusive for one in neighbours if one)


def test_later_steps_never_change_an_earlier_decision() -> None:
    """What was taken at a step is taken again by a run that is resumed there, and is still there to be kept."""
    whole = course(grows_then_falls, seed=2, spread=0.05)
    taken = [find_knee({s: whole[s] for s in STEPS if s <= step}, None, PROMPTS, seed=0) for step in STEPS[1:]]
    steps = [one.step for one in taken if one and one.is_conclusive]
    assert steps == sorted(steps)
    assert all(step == now or step in steps for now, step in zip(STEPS[-len(steps) :], steps, strict=True))


def test_too_few_prompts_allow_no_choice_and_the_base_alone_has_no_knee() -> None:
    few = {0: [0.1, 0.2, 0.3], 10: [0.9, 0.91, 0.89]}
    found = find_knee(few, None, ["a", "b", "c"], seed=0)
    assert found
    assert not found.is_conclusive
    assert find_knee({0: [0.1, 0.2]}, None, ["a", "b"], seed=0) is None


@pytest.mark.parametrize(("values", "places"), [((0.5, -0.001), 3), ((0.0,), 3), ((0.004, -0.0001), 4), ((3e-5,), 6)])
def test_small_differences_are_told_with_two_digits(values: tuple[float, ...], places: int) -> None:
    assert places_of(*values) == places
