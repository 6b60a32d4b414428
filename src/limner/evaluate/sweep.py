"""Which variant of a sweep is taken: the rule of the steps of a run, over variants in the order of what they forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from limner.evaluate.knee import LEVEL, climb, difference, told
from limner.evaluate.statistics import finding
from limner.metrics.course import Course, Curve
from limner.metrics.questions import CLASS_DRIFT, COPYING, PROMPT_FOLLOWING, SUBJECT_FIDELITY
from limner.metrics.scores import Interval
from limner.metrics.sweep import Standing, SweptMetric, SweptScore

BASE = "base"
RULE = (
    "The rule: beginning with the base, and going on from the variant that {order} to the one that {last}, a variant "
    f"takes the place of the one taken so far where its likeness is above by more than the {LEVEL:.0%} interval of "
    "their paired difference."
)
STANDINGS: dict[str, Standing] = {"better": "more alike", "worse": "less alike"}


@dataclass(frozen=True)
class Choice:
    """What the rule makes of the variants that were judged."""

    order: tuple[str, ...]
    """From the one that forgets least."""
    metrics: tuple[SweptMetric, ...]
    taken: str | None
    to_taken: Mapping[str, Interval]
    standing: Mapping[str, Standing]
    words: tuple[str, ...]


def choose(judged: Mapping[str, tuple[Course, int]]) -> Choice:
    """Choose among variants, each with its course and the step that its result is of.

    All courses must have one key, so that their pictures are of the same prompts and seeds on one base.
    """
    kinds = [curve.kind for curve in next(iter(judged.values()))[0].curves]
    curves = {kind: {name: _curve(course, kind) for name, (course, _) in judged.items()} for kind in kinds}
    drift = curves.get(CLASS_DRIFT.kind)
    cost = {name: drift[name].scores[step].mean if drift else 0.0 for name, (_, step) in judged.items()}
    order = tuple(sorted(judged, key=cost.__getitem__))  # those that forget alike stay in the order they were given in
    steps = {name: judged[name][1] for name in order}
    metrics = tuple(_metric(curves[kind], steps) for kind in kinds)
    likeness = curves[SUBJECT_FIDELITY.kind]
    first = likeness[order[0]]
    values = {BASE: first.values[0], **{name: likeness[name].values[step] for name, step in steps.items()}}
    taken = climb(values, (BASE, *order), first.prompts, seed=0)
    to_taken = {name: difference(values, name, taken, first.prompts, seed=0) for name in order if name != taken}
    standing: dict[str, Standing] = {
        name: STANDINGS.get(finding(gain, better="higher"), "not conclusive") for name, gain in to_taken.items()
    }
    if taken == BASE:
        return Choice(order, metrics, None, to_taken, standing, _nothing(drift is not None))
    to_base = difference(values, taken, BASE, first.prompts, seed=0)
    words = _words(taken, order, metrics, to_taken, standing, to_base)
    return Choice(order, metrics, taken, to_taken, {**standing, taken: "taken"}, words)


def _curve(course: Course, kind: str) -> Curve:
    return next(curve for curve in course.curves if curve.kind == kind)


def _metric(curves: Mapping[str, Curve], steps: Mapping[str, int]) -> SweptMetric:
    """Return the scores of one question: the base's, and each variant's at the step of its result."""
    first = next(iter(curves.values()))
    arms = {BASE: first.scores[0], **{name: curves[name].scores[step] for name, step in steps.items()}}
    return SweptMetric(
        key=f"{first.kind}.{first.encoder}", kind=first.kind, encoder=first.encoder, title=first.title, says=first.says,
        better=first.better, levels=first.levels, arms={name: SweptScore(score=score) for name, score in arms.items()},
    )  # fmt: skip


def _rule(forgetting: bool) -> str:
    if forgetting:
        return RULE.format(order="forgets least", last="forgets most")
    return RULE.format(order="was named first", last="was named last (nothing was drawn of the class, so what each "
                       "forgets is not known)")  # fmt: skip


def _nothing(forgetting: bool) -> tuple[str, ...]:
    return (
        "No choice can be made: no variant's likeness is above the base's by more than its interval. Not conclusive; "
        "none is taken. More steps or higher rates may show more; a larger validation.images_per_prompt gives narrower "
        "intervals.",
        _rule(forgetting),
    )


def _words(
    taken: str,
    order: Sequence[str],
    metrics: Sequence[SweptMetric],
    to_taken: Mapping[str, Interval],
    standing: Mapping[str, Standing],
    to_base: Interval,
) -> tuple[str, ...]:
    """Return which one is taken and why, in sentences."""
    by_kind = {metric.kind: metric for metric in metrics}
    scores = {kind: metric.arms[taken].score.mean for kind, metric in by_kind.items()}
    also = [
        f"follows prompts {scores[PROMPT_FOLLOWING.kind]:.3f}" if PROMPT_FOLLOWING.kind in scores else "",
        f"has moved the class by {scores[CLASS_DRIFT.kind]:.3f}" if CLASS_DRIFT.kind in scores else "",
    ]
    said = [f"{taken} is taken: likeness {scores[SUBJECT_FIDELITY.kind]:.3f}, {told(to_base, LEVEL)} to the base"
            f"{''.join(f'; {one}' for one in also if one)}."]  # fmt: skip
    unclear = [name for name in order if standing.get(name) == "not conclusive"]
    if unclear:
        best = max(unclear, key=lambda name: to_taken[name].mean)
        several = f"{len(unclear)} others cannot be told from it in likeness; the best of them by its mean, {best},"
        one = f"{best} cannot be told from it in likeness; it"
        said.append(f"Not conclusive: {several if unclear[1:] else one} differs by {told(to_taken[best], LEVEL)}.")
    passed = [name for name in unclear if order.index(name) < order.index(taken)]
    if passed:
        names = " and ".join(passed)
        said.append(f"{names} would forget less, but show no more likeness than what was taken before.")
    copying = by_kind.get(COPYING.kind)
    limit = next((level.value for level in copying.levels if level.is_limit), np.inf) if copying else np.inf
    if scores.get(COPYING.kind, 0.0) > limit:
        said.append("Look at its pictures: on average they come nearer to a training picture than the two most similar "
                    "training pictures come to one another.")  # fmt: skip
    return (*said, _rule(CLASS_DRIFT.kind in scores))
