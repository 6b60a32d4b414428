"""What may be claimed: every pair of arms on every question, and Holm's correction over the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np

from limner.evaluate.statistics import finding, holm, interval, interval_p, sign_flip_p
from limner.evaluate.words import difference_in_words, not_held
from limner.metrics.metric import Question
from limner.metrics.scores import Difference, MetricScore
from limner.metrics.study import StudyMetric

AnyMetric = TypeVar("AnyMetric", MetricScore, StudyMetric)
LEVEL = 0.05
CLAIMS = ("better", "worse", "higher", "lower")


def differences(
    question: Question, values: Mapping[str, np.ndarray], prompts: Sequence[str], *, seed: int
) -> tuple[Difference, ...]:
    """Return what the paired differences allow to say, each alone: tuned arms to the base, then to one another."""
    base, *tuned = values
    return tuple(
        _difference(question, arm, to, values[arm] - values[to], prompts, seed=seed, is_to_base=to == base)
        for to, arm in pairs(base, tuned)
    )


def pairs(base: str, tuned: Sequence[str]) -> list[tuple[str, str]]:
    """Return what is compared, each pair with the arm that it is compared to first: the base, then one another."""
    return [(base, arm) for arm in tuned] + list(combinations(tuned, 2))


def corrected(metrics: Sequence[AnyMetric]) -> tuple[AnyMetric, ...]:
    """Return the scores with every claim corrected for all others of its family, and taken back where it falls.

    There are two families, because they answer two questions: what each arm changed (differences to the base), and
    which arm is better for what (differences between tuned arms).
    """
    p: dict[tuple[str, str, str], tuple[float, int]] = {}
    for is_to_base in (True, False):
        family = {
            (m.key, d.arm, d.to): d.p
            for m in metrics
            for d in m.differences
            if m.is_claimed and d.p is not None and (d.to == next(iter(m.arms))) == is_to_base
        }
        p |= {place: (value, len(family)) for place, value in zip(family, holm(list(family.values())), strict=True)}
    return tuple(
        metric.model_copy(
            update={"differences": tuple(_held(d, p.get((metric.key, d.arm, d.to))) for d in metric.differences)}
        )
        for metric in metrics
    )


def _difference(
    question: Question,
    arm: str,
    to: str,
    values: np.ndarray,
    prompts: Sequence[str],
    *,
    seed: int,
    is_to_base: bool,
) -> Difference:
    score = interval(values, prompts, seed=seed)
    found = finding(score, better=question.better)
    is_tested = not (is_to_base and question.relative_to_base)
    if not is_tested and values.any():
        found = "not tested"
    return Difference(
        arm=arm,
        to=to,
        score=score,
        p=interval_p(score) if is_tested else None,
        p_holm=None,
        sign_flip_p=sign_flip_p(values, prompts, seed=seed) if is_tested else None,
        conclusive=found in CLAIMS,
        finding=found,
        words=difference_in_words(score, found),
    )


def _held(difference: Difference, p: tuple[float, int] | None) -> Difference:
    if p is None:
        return difference
    p_holm, claims = p
    if not difference.conclusive or p_holm < LEVEL:
        return difference.model_copy(update={"p_holm": p_holm})
    words = not_held(difference.score, claims, p_holm)
    taken_back = {"p_holm": p_holm, "conclusive": False, "finding": "not conclusive", "words": words}
    return difference.model_copy(update=taken_back)
