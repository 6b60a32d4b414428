"""Turns numbers into places on the page, in per cent of a plot's width and height."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limner.metrics.scores import Interval, MetricScore
from limner.metrics.study import StudyMetric


@dataclass(frozen=True)
class Tick:
    """A value on an axis and where it stands."""

    value: str
    at: float


@dataclass(frozen=True)
class Dots:
    """One arm's row: mean, interval, and a faint dot for each prompt, or for each subject of a study."""

    arm: str
    mean: float
    low: float | None
    high: float | None
    at: float
    from_: float | None
    to: float | None
    prompts: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """A level as a vertical line through the rows."""

    title: str
    name: str
    value: float
    at: float


@dataclass(frozen=True)
class DotPlot:
    """A metric's scores on one axis, with the levels to read them against."""

    metric: MetricScore | StudyMetric
    rows: tuple[Dots, ...]
    lines: tuple[Line, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Curve:
    """One loss over the steps: every step faint, the smoothed line strong, both as SVG points."""

    name: str
    arm: str
    """Whose colour it has."""
    kind: str
    """Whose loss it is: "subject", "prior" or "held-out"."""
    raw: str
    """Empty where several runs would hide one another."""
    smooth: str
    last: float


@dataclass(frozen=True)
class LossPlot:
    """The losses over the steps; the SVG's own scale is 1000 x 400."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def by_prompt(metric: MetricScore) -> dict[str, list[float]]:
    """Return each arm's mean values of the prompts."""
    return {arm: list(prompt_means(metric, arm).values()) for arm in metric.arms}


def dot_plot(metric: MetricScore | StudyMetric, dots: Mapping[str, Sequence[float]]) -> DotPlot:
    """Lay out one metric's scores; `dots` are the values that stand small beside each arm's mean."""
    values = [value for arm in dots.values() for value in arm]
    values += [level.value for level in metric.levels]
    for arm in metric.arms.values():
        values += [v for v in (arm.score.mean, arm.score.low, arm.score.high) if v is not None]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = tuple(
        Dots(
            arm=name,
            mean=arm.score.mean,
            low=arm.score.low,
            high=arm.score.high,
            at=at(arm.score.mean),
            from_=None if arm.score.low is None else at(arm.score.low),
            to=None if arm.score.high is None else at(arm.score.high),
            prompts=tuple(at(value) for value in dots[name]),
        )
        for name, arm in metric.arms.items()
    )
    lines = tuple(Line(title=x.title, name=x.name, value=x.value, at=at(x.value)) for x in metric.levels)
    return DotPlot(metric, rows, lines, tuple(Tick(f"{t:.10g}", at(t)) for t in ticks))


def prompt_means(metric: MetricScore, arm: str) -> dict[str, float]:
    """Return an arm's mean value for each prompt."""
    values: dict[str, list[float]] = {}
    for image in metric.arms[arm].images:
        values.setdefault(image.prompt, []).append(image.value)
    return {prompt: sum(v) / len(v) for prompt, v in values.items()}


def loss_plot(runs: Mapping[str, Sequence[dict[str, Any]]]) -> LossPlot | None:
    """Lay out the losses that each arm's log holds; None where there are no steps."""
    series = [(arm, kind, points) for arm, rows in runs.items() for kind, points in _losses(rows)]
    if not series:
        return None
    last_step = max(points[-1][0] for _, _, points in series)
    # A few wild steps must not flatten the rest: the axis ends at the 99th percentile.
    everything = sorted(value for _, _, points in series for _, value in points)
    y_ticks = nice_ticks(0.0, everything[min(len(everything) - 1, int(0.99 * len(everything)))])
    top = y_ticks[-1]

    def drawn(rows: list[tuple[int, float]]) -> str:
        return " ".join(f"{1000 * x / last_step:.1f},{400 - 400 * min(y, top) / top:.1f}" for x, y in rows)

    is_alone = len(runs) == 1
    curves = tuple(
        Curve(
            name=_curve_name("" if is_alone else arm, kind),
            arm=arm,
            kind=kind,
            raw=drawn(points) if is_alone else "",
            smooth=drawn(smoothed := smooth(points)),
            last=smoothed[-1][1],
        )
        for arm, kind, points in series
    )
    x_ticks = [t for t in nice_ticks(0.0, float(last_step)) if t <= last_step]
    return LossPlot(
        curves,
        tuple(Tick(f"{t:.10g}", 100 * t / last_step) for t in x_ticks),
        tuple(Tick(f"{t:.10g}", 100 * t / top) for t in y_ticks),
    )


def _losses(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return the losses of one log: of the subject's pictures, of class pictures and of held-out ones, where known."""
    keys = {"subject": "instance_loss", "prior": "prior_loss", "held-out": "validation_loss"}
    found = [(kind, [(r["step"], float(r[key])) for r in rows if r.get(key) is not None]) for kind, key in keys.items()]
    return [(kind, points) for kind, points in found if len(points) > 1]


def _curve_name(arm: str, kind: str) -> str:
    what = {"subject": "" if arm else "the subject's pictures", "prior": "class pictures (prior)"}
    return ", ".join(filter(None, (arm, what.get(kind, "held-out pictures, always the same noise"))))


def smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return an exponential mean over about a twentieth of the steps, without the usual bias at the start."""
    keep = 1 - 1 / max(1.0, len(points) / 20)
    total = weight = 0.0
    smoothed = []
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append((step, total / weight))
    return smoothed


def ends(score: Interval) -> tuple[float, float, float]:
    """Return mean, low and high; the mean for all where there is no interval."""
    low, high = (score.mean if end is None else end for end in (score.low, score.high))
    return score.mean, low, high


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round values at equal distances that enclose [low, high]."""
    span = max(high - low, 1e-6)
    rough = span / (most - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
