"""Two scores against one another: each arm a cross of two intervals, and which arms no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limner.metrics.scores import Interval, MetricScore, Scores
from limner.metrics.study import Study, StudyMetric
from limner.metrics.sweep import Sweep, SweptMetric
from limner.report.charts import Line, Tick, ends, nice_ticks
from limner.report.numbers import listed

PLANES = (("subject_fidelity", "prompt_following"), ("subject_fidelity", "other_drift"))
"""The questions that pull against one another: along, and up."""
Charted = MetricScore | StudyMetric | SweptMetric
APART, WIDE = 7.0, 30.0
"""How far apart two names must be, in per cent of the plot's height, and how wide one is, of its width."""


@dataclass(frozen=True)
class Mark:
    """One arm: where it stands, from where to where its intervals reach, and its faint dots; all in per cent."""

    arm: str
    x: float
    y: float
    across: tuple[float, float]
    upright: tuple[float, float]
    dots: tuple[tuple[float, float], ...]
    name_y: float
    """Where its name stands, moved away from the names of others."""
    is_right: bool
    """Whether its name stands left of it, because it is far to the right."""


@dataclass(frozen=True)
class Plane:
    """Two metrics, one along and one up; up is better where the metric's scale is turned."""

    along: Charted
    up: Charted
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...]
    """The levels of the metric along."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    front: tuple[str, ...]
    """Arms that no other beats in both, by their means."""
    words: str


def planes(
    scores: Scores | Study | Sweep,
    dots: Mapping[str, Mapping[str, Sequence[float]]],
    pairs: Sequence[tuple[str, str]] = PLANES,
) -> list[Plane]:
    """Return the planes that the scores have both questions of; `dots` are each metric's small values by arm."""
    found: list[Plane] = []
    for kinds in pairs:
        along, up = (scores.find(kind) for kind in kinds)
        if along and up:
            found.append(_plane(along, up, dots.get(along.key, {}), dots.get(up.key, {})))
    return found


def front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Return the names of the points that no other point is at least as high in both and higher in one (Pareto)."""
    return tuple(
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    )


def _plane(
    along: Charted,
    up: Charted,
    x_dots: Mapping[str, Sequence[float]],
    y_dots: Mapping[str, Sequence[float]],
) -> Plane:
    sign = -1.0 if up.better == "lower" else 1.0
    scores = {arm: (along.arms[arm].score, up.arms[arm].score) for arm in along.arms}
    small = {
        arm: list(zip(x_dots.get(arm, ()), y_dots.get(arm, ()), strict=False))
        if len(x_dots.get(arm, ())) == len(y_dots.get(arm, ()))
        else []
        for arm in scores
    }
    xs = [v for x, _ in scores.values() for v in ends(x)] + [level.value for level in along.levels]
    xs += [x for rows in small.values() for x, _ in rows]
    ys = [v for _, y in scores.values() for v in ends(y)] + [y for rows in small.values() for _, y in rows]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), nice_ticks(min(ys), max(ys))

    def x_at(value: float) -> float:
        return round(100 * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 2)

    def y_at(value: float) -> float:
        share = 100 * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(share if sign > 0 else 100 - share, 2)

    names = _spread({arm: (x_at(x.mean), y_at(y.mean)) for arm, (x, y) in scores.items()})
    marks = tuple(
        Mark(
            arm=arm, x=x_at(x.mean), y=y_at(y.mean), name_y=names[arm], is_right=x_at(x.mean) > 75,
            across=(x_at(ends(x)[1]), x_at(ends(x)[2])),
            upright=(min(y_at(v) for v in ends(y)), max(y_at(v) for v in ends(y))),
            dots=tuple((x_at(a), y_at(b)) for a, b in small[arm]),
        )
        for arm, (x, y) in scores.items()
    )  # fmt: skip
    best = front({arm: (x.mean, sign * y.mean) for arm, (x, y) in scores.items()})
    lines = tuple(Line(title=v.title, name=v.name, value=v.value, at=x_at(v.value)) for v in along.levels)
    return Plane(
        along, up, marks, lines,
        tuple(Tick(f"{t:.10g}", x_at(t)) for t in x_ticks), tuple(Tick(f"{t:.10g}", y_at(t)) for t in y_ticks),
        best, _words(best, scores),
    )  # fmt: skip


def _words(best: Sequence[str], scores: Mapping[str, tuple[Interval, Interval]]) -> str:
    """Return which arms stand on the front, and that intervals which overlap leave it open."""
    if len(scores) == 2:
        return ""
    text = f"By their means {listed(best)} {'is' if len(best) == 1 else 'are'} beaten by no other in both."
    return f"{text} Where crosses overlap, that may be chance."


def _spread(places: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return each name's height: its own place, or above the names that it would stand over."""
    moved: dict[str, float] = {}
    for arm, (x, y) in sorted(places.items(), key=lambda one: one[1][1]):
        for near in sorted(moved[other] for other in moved if abs(places[other][0] - x) < WIDE):
            y = near + APART if abs(near - y) < APART else y
        moved[arm] = y
    return moved
