"""Which step to take: the one after which likeness, or nearness to a teacher, grows by no more than its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import TypeVar

import numpy as np

from limner.evaluate.statistics import LEAST_UNITS, interval
from limner.metrics.course import Knee
from limner.metrics.scores import Interval

LEVEL = 0.99
"""Of the intervals of likeness. A run is looked at some ten times: at 95 %, ten looks find something in 15 of 100
courses that are nothing but noise, at 99 % in 4 (simulated, 8 prompts of 2 images)."""
PerStep = Mapping[int, Sequence[float]]
Place = TypeVar("Place", int, str)


@dataclass(frozen=True)
class Wording:
    """How a choice is said: sentences with the steps `taken`, `best` and `last`, and with `gain` and `moved`."""

    nothing: str
    growing: str
    found: str
    goes_on: str
    has_stopped: str


LIKENESS = Wording(
    nothing="No choice can be made: at no step is the likeness above the base's by more than its interval. Not "
    "conclusive; the last step, {last}, is taken.",
    growing="Likeness was still growing at step {taken}, the last that was judged: more steps may give more.",
    found="From step {taken} on likeness grows no more: step {best}, the best later one, adds {gain}.",
    goes_on="Forgetting goes on: by step {last} the class has moved on by {moved}.",
    has_stopped="Forgetting does not go on either: by step {last} the class has moved on by {moved}.",
)
NEARNESS = Wording(
    nothing="No choice can be made: no step is nearer to the base's many-step pictures than the others by more than "
    "the interval. Not conclusive; the last step, {last}, is taken.",
    growing="The pictures were still coming nearer to the base's many-step ones at step {taken}, the last that was "
    "judged: more steps may bring them nearer.",
    found="From step {taken} on the pictures come no nearer to the base's many-step ones: step {best}, the nearest "
    "later one, is nearer by {gain}.",
    goes_on="They go away from them again: by step {last} the distance has grown by {moved}.",
    has_stopped="They do not go away from them either: by step {last} the distance has grown by {moved}.",
)


def find_knee(
    likeness: PerStep, drift: PerStep | None, prompts: Sequence[str], class_prompts: Sequence[str] = (), *, seed: int
) -> Knee | None:
    """Return the knee of a course of steps, the base's 0 first; None as long as only the base was judged.

    `likeness` and `drift` have the value of each image at each step, of the same prompts and seeds every time; the
    others say which prompt each image was drawn from.

    The knee is what `climb` takes of the steps: more of them give nothing that these pictures can show. Later steps
    never change an earlier decision, so a run needs to keep but one checkpoint for it, and a resumed run decides alike.
    """
    steps = sorted(likeness)
    if len(steps) < 2:
        return None
    taken = climb(likeness, steps, prompts, seed=seed)
    is_conclusive = taken > steps[0]
    later = taken < steps[-1] and is_conclusive
    moved = difference(drift, steps[-1], taken, class_prompts, seed=seed, level=0.95) if drift and later else None
    return _knee(likeness, taken, moved, prompts, seed=seed, wording=LIKENESS, is_conclusive=is_conclusive)


def find_nearest(distance: PerStep, start: Sequence[float], prompts: Sequence[str], *, seed: int) -> Knee | None:
    """Return the step of a few-step run that comes nearest to what its base draws in many steps; None before any.

    `distance` has at each step every image's share in the distance between the two sets (at step 0, of the many-step
    pictures themselves, none), and `start` that of the base in few steps before anything was learned.

    The step is what `climb` takes of those that were judged, by nearness. It is conclusive where it is nearer than the
    first that was judged, or the last one is farther than it, by more than the interval (`LEVEL`). Whether it is nearer
    than the start is said beside it: where learning makes it worse at once, the least learned is the best there is.
    """
    steps = sorted(step for step in distance if step)
    if not steps:
        return None
    near = {step: [-value for value in distance[step]] for step in steps}
    taken, last = climb(near, steps, prompts, seed=seed), steps[-1]
    is_conclusive = taken > steps[0] or _is_above(difference(distance, last, taken, prompts, seed=seed))
    moved = (
        difference(distance, last, taken, prompts, seed=seed, level=0.95) if is_conclusive and last > taken else None
    )
    found = _knee(near, taken, moved, prompts, seed=seed, wording=NEARNESS, is_conclusive=is_conclusive)
    gained = interval(np.subtract(start, distance[found.step]), prompts, seed=seed, level=LEVEL)
    return found.model_copy(update={"held": taken, "words": f"{found.words} {_against_start(found.step, gained)}"})


def _knee(
    values: PerStep, taken: int, moved: Interval | None, prompts: Sequence[str], *, seed: int, wording: Wording,
    is_conclusive: bool,
) -> Knee:  # fmt: skip
    """Return what is to be said of the step that is taken; `moved` is what has got worse since."""
    steps = sorted(values)
    last, later = steps[-1], [step for step in steps if step > taken] if is_conclusive else []
    best = max(later, key=lambda step: float(np.mean(values[step])), default=None)
    gain = None if best is None else difference(values, best, taken, prompts, seed=seed)
    is_forgetting = moved is not None and moved.low is not None and moved.low > 0
    return Knee(
        step=taken if is_conclusive else last,
        is_conclusive=is_conclusive,
        is_growing=is_conclusive and not later,
        waited=len(later),
        later_gain=gain,
        forgetting=moved,
        is_forgetting=is_forgetting,
        words=_words(wording, taken, best, last, gain, moved, is_forgetting, is_conclusive=is_conclusive),
        held=taken if is_conclusive else 0,
    )


def climb(
    likeness: Mapping[Place, Sequence[float]], places: Sequence[Place], prompts: Sequence[str], *, seed: int
) -> Place:
    """Return which of some models is taken: `places` are in the order of what they cost, the base first.

    Beginning with the base, one is taken when its likeness is above that of the one taken before by more than the
    interval (`LEVEL`) of their paired difference: k becomes t when low(f(t) - f(k)) > 0. It is the rule to take the
    least of those that cannot be told from the best (the "one standard error rule", Breiman et al. 1984, section 3.4.3;
    Hastie et al. 2009, section 7.10), with the interval of the paired difference in the place of one standard error,
    because pictures of one prompt and seed differ far less between two steps than between prompts. Each is compared
    with the one taken, never with its neighbour: slow growth adds up until it shows.
    """
    taken = places[0]
    for place in places[1:]:
        gain = difference(likeness, place, taken, prompts, seed=seed)
        if _is_above(gain):
            taken = place
    return taken


def _is_above(gain: Interval) -> bool:
    """Tell whether an interval lies above 0, with enough prompts behind it."""
    return gain.n_units >= LEAST_UNITS and gain.low is not None and gain.low > 0


def difference(
    values: Mapping[Place, Sequence[float]], one: Place, other: Place, prompts: Sequence[str], *, seed: int,
    level: float = LEVEL,
) -> Interval:  # fmt: skip
    """Return the mean paired difference of two models' values, one minus the other, with its interval."""
    return interval(np.subtract(values[one], values[other]), prompts, seed=seed, level=level)


def _words(
    wording: Wording, taken: int, best: int | None, last: int, gain: Interval | None, moved: Interval | None,
    is_forgetting: bool, *, is_conclusive: bool,
) -> str:  # fmt: skip
    """Return why a step is taken."""
    if not is_conclusive:
        return wording.nothing.format(last=last)
    if best is None or gain is None:
        return wording.growing.format(taken=taken)
    found = wording.found.format(taken=taken, best=best, gain=told(gain, LEVEL))
    if moved is None:
        return found
    more = wording.goes_on if is_forgetting else wording.has_stopped
    return f"{found} {more.format(last=last, moved=told(moved, 0.95))}"


def _against_start(step: int, gained: Interval) -> str:
    """Return what a few-step run has learned: how much nearer a step is than the base in few steps was before."""
    if _is_above(gained):
        what = "is nearer than"
    elif gained.high is not None and gained.high < 0:
        what = "is farther away than"
    else:
        what = "cannot be told from"
    return f"Step {step} {what} the base in as few steps before anything was learned (nearer by {told(gained, LEVEL)})."


def told(one: Interval, level: float) -> str:
    """Return a difference with its interval, for a sentence."""
    places = places_of(one.mean, one.low or 0.0, one.high or 0.0)
    ends = (
        ""
        if one.low is None or one.high is None
        else f" ({level:.0%}: {one.low:+.{places}f} to {one.high:+.{places}f})"
    )
    return f"{one.mean:+.{places}f}{ends}"


def places_of(*values: float) -> int:
    """Return how many decimal places values are told with: three, and of small ones as many as make two digits."""
    largest = max(map(abs, values))
    return 3 if largest >= 0.01 or not largest else 1 - floor(log10(largest))
