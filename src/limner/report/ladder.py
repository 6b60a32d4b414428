"""Strength and steps: a grid of pictures with their scores, and curves of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.metrics.ladder import BASE, Ladder, LadderMetric, Rung
from limner.metrics.scores import Interval, read_written
from limner.report.charts import Tick, ends, nice_ticks
from limner.report.material import Trained
from limner.report.numbers import number

USUAL_FEW = 4
"""How many steps a few-step adapter is usually drawn with."""


@dataclass(frozen=True)
class GridCell:
    """One place: the picture of the first prompt, and what all prompts score there."""

    file: Path
    values: tuple[tuple[str, str], ...]
    """Title and mean of each metric."""


@dataclass(frozen=True)
class GridRow:
    """One strength, or one model of a few-step run, at each number of steps."""

    name: str
    cells: tuple[GridCell | None, ...]


@dataclass(frozen=True)
class Point:
    """One mean with its interval, in per cent of the plot."""

    x: float
    y: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Series:
    """What was trained, or the base, over one axis."""

    name: str
    is_base: bool
    points: tuple[Point, ...]
    colour: str = ""
    """As a style, where it is not that of the arm."""

    @property
    def line(self) -> str:
        """Return the points of an SVG line on a scale of 100 x 100."""
        return " ".join(f"{p.x:.2f},{100 - p.y:.2f}" for p in self.points)


@dataclass(frozen=True)
class LadderPlot:
    """One metric over strengths, or over numbers of steps; the values stand at equal distances."""

    metric: LadderMetric
    over: str
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class LadderPart:
    """The section of one arm."""

    arm: str
    ladder: Ladder
    prompt: str
    grid: tuple[GridRow, ...]
    plots: tuple[LadderPlot, ...]
    words: str


def ladder_part(trained: Trained) -> LadderPart | None:
    """Return the section of a run whose evaluation asked for strengths or steps; None of any other."""
    if not trained.run.ladder_scores.is_file():
        return None
    ladder = read_written(Ladder, trained.run.ladder_scores, f"Score again: limner evaluate {trained.run.path}")
    return LadderPart(
        arm=trained.arm,
        ladder=ladder,
        prompt=ladder.prompts[0],
        grid=tuple(
            GridRow(
                _row_name(arm, s, ladder, trained.arm),
                tuple(_cell(ladder.at(s, n, arm), trained, ladder) for n in ladder.steps),
            )
            for arm, s in ladder.rows
        ),
        plots=tuple(plot for metric in ladder.metrics for plot in _plots(ladder, metric, trained.arm)),
        words=_words(ladder),
    )


def _row_name(arm: str, strength: float, ladder: Ladder, trained: str) -> str:
    if arm in ("", BASE) and strength == 0:
        return "the base"
    return arm or (f"strength {strength:g}" if ladder.has_strength else trained)


def _cell(rung: Rung | None, trained: Trained, ladder: Ladder) -> GridCell | None:
    if rung is None:
        return None
    first = next(iter(rung.scores.values())).images[0]
    values = tuple((m.title, number(rung.scores[m.key].score.mean)) for m in ladder.metrics)
    return GridCell(trained.run.path / first.file, values)


def _plots(ladder: Ladder, metric: LadderMetric, arm: str) -> list[LadderPlot]:
    """Return a metric over strengths at the most steps, and over steps for the base and for strength 1."""
    found: list[LadderPlot] = []
    most = max(ladder.steps)
    if ladder.has_arms:
        arms = {(name, name == BASE): [(str(n), ladder.at(s, n, name)) for n in ladder.steps]
                for name, s in ladder.rows}  # fmt: skip
        return [_plot(metric, "denoising steps", arms, several=True)] if len(ladder.steps) > 1 else []
    if len(ladder.strengths) > 2:  # noqa: PLR2004 - the base and one strength make no curve
        rungs = [(f"{s:g}", ladder.at(s, most)) for s in ladder.strengths]
        found.append(_plot(metric, f"strength, {most} steps", {(arm, False): rungs}))
    if len(ladder.steps) > 1:
        full = 1.0 if 1.0 in ladder.strengths else max(ladder.strengths)
        name = arm if full == 1.0 else f"{arm} at {full:g}"
        over = {key: [(str(n), ladder.at(s, n)) for n in ladder.steps]
                for key, s in {("base", True): 0.0, (name, False): full}.items()}  # fmt: skip
        found.append(_plot(metric, "denoising steps", over))
    return found


def _plot(
    metric: LadderMetric, over: str, rungs: dict[tuple[str, bool], list[tuple[str, Rung | None]]], *,
    several: bool = False,
) -> LadderPlot:  # fmt: skip
    """Return the curves of one metric; with `several` each has a colour of its own."""
    scores = {
        key: [(label, rung.scores[metric.key].score) for label, rung in rows if rung] for key, rows in rungs.items()
    }
    values = [v for rows in scores.values() for _, score in rows for v in ends(score)]
    ticks = nice_ticks(min(values), max(values))
    labels = [label for label, _ in next(iter(rungs.values()))]

    def x_at(label: str) -> float:
        return round(100 * (labels.index(label) + 0.5) / len(labels), 2)

    def y_at(value: float) -> float:
        return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    series = tuple(
        Series(
            name,
            is_base,
            tuple(_point(x_at(label), score, y_at, label) for label, score in rows),
            f"--hue:var(--arm-{number});--solid:var(--solid-{number})" if several else "",
        )
        for number, ((name, is_base), rows) in enumerate(scores.items())
    )
    y_ticks = tuple(Tick(f"{t:.10g}", y_at(t)) for t in ticks)
    return LadderPlot(metric, over, series, tuple(Tick(label, x_at(label)) for label in labels), y_ticks)


def _point(x: float, score: Interval, y_at: Callable[[float], float], label: str) -> Point:
    mean, low, high = ends(score)
    return Point(x, y_at(mean), y_at(low), y_at(high), f"{label}: {number(mean)}")


def _words(ladder: Ladder) -> str:
    """Return whether likeness rises with every strength up to 1, or what few steps keep, by their means."""
    if ladder.has_arms:
        return _kept(ladder)
    if not ladder.has_strength:
        return "What was trained has no strength: it is there (1) or not (0, the base)."
    rising = [s for s in ladder.strengths if s <= 1]
    if len(rising) < 3 or not ladder.metrics:  # noqa: PLR2004 - two points always rise or fall
        return ""
    key, most = ladder.metrics[0].key, ladder.steps[-1]
    means = _means(ladder, key, rising, most)
    if all(a <= b for a, b in zip(means, means[1:], strict=False)):
        return "The strength is a slider: by its means likeness rises with every step from 0 to 1."
    return "The strength is no even slider here: by its means likeness does not rise with every step from 0 to 1."


def _kept(ladder: Ladder) -> str:
    """Return what share of the base's score at the most steps the few-step adapter has in its fewest of 4 or more."""
    few = next((n for n in ladder.steps if n >= USUAL_FEW), ladder.steps[-1])
    most, said = ladder.steps[-1], list[str]()
    whole = ladder.at(0.0, most, BASE)
    for metric in ladder.metrics:
        full = whole.scores[metric.key].score.mean if whole else 0.0
        found = {name: rung.scores[metric.key].score.mean / full for name, s in ladder.rows
                 if full > 0 and (rung := ladder.at(s, few, name))}  # fmt: skip
        if found:
            shares = ", ".join(f"{name} {share:.2f}" for name, share in found.items())
            said.append(f"{metric.title.lower()}: {shares}")
    if not said:
        return ""
    return f"In {few} steps, as a share of what the base has in {most}, by the means: {'; '.join(said)}."


def _means(ladder: Ladder, key: str, strengths: Sequence[float], steps: int) -> list[float]:
    rungs = (ladder.at(strength, steps) for strength in strengths)
    return [rung.scores[key].score.mean for rung in rungs if rung]
