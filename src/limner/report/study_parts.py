"""The parts of the page over subjects and training seeds: table, dots by subject, pictures, and what it could see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import fmean
from urllib.parse import quote

from limner.metrics.scores import Interval
from limner.metrics.study import Study, StudyDifference, StudyMetric, SubjectInfo
from limner.report.charts import Tick, nice_ticks
from limner.report.costs import Figures, figures
from limner.report.material import Material, Trained
from limner.report.tables import FINDINGS

SHOWN = 3
"""How many prompts of each subject are shown: the first ones, whatever they look like."""


@dataclass(frozen=True)
class Cell:
    """One arm's score in one metric, and how it stands to the base."""

    score: Interval | None
    """None for a base where the value is itself a difference to it."""
    difference: StudyDifference | None
    """None for the base."""
    finding: str


@dataclass(frozen=True)
class SubjectDots:
    """One subject's row: where each arm stands."""

    subject: str
    dots: tuple[tuple[str, float, float], ...]
    """Arm, value, place in per cent."""


@dataclass(frozen=True)
class SubjectPlot:
    """A metric's values subject by subject, so that no mean hides one that failed."""

    metric: StudyMetric
    rows: tuple[SubjectDots, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Shown:
    """One prompt of one subject: the picture of each column."""

    prompt: str
    reference: Path
    """A training picture: the first for the first prompt, and so on."""
    files: dict[str, Path]
    """By arm."""


@dataclass(frozen=True)
class SubjectGrid:
    """One subject's prompts in rows, and its pages."""

    name: str
    rows: tuple[Shown, ...]
    links: tuple[tuple[str, str], ...]
    """Training seed, and its comparison.html as an address from this page."""


@dataclass(frozen=True)
class PowerRow:
    """What the design can see in one metric and pair of arms."""

    metric: StudyMetric
    difference: StudyDifference


def claimed(study: Study) -> list[StudyMetric]:
    """Return the metrics that the verdict claims something from."""
    return [metric for metric in study.metrics if metric.is_claimed]


def by_subject(metric: StudyMetric) -> dict[str, list[float]]:
    """Return each arm's mean values of the subjects."""
    return {arm: list(one.subjects.values()) for arm, one in metric.arms.items()}


def matrix(study: Study, metrics: Sequence[StudyMetric]) -> dict[str, list[Cell]]:
    """Return the arms' scores, each a row with a cell for each metric."""
    return {arm: [_cell(metric, arm) for metric in metrics] for arm in study.design.arms}


def _cell(metric: StudyMetric, arm: str) -> Cell:
    base = next(iter(metric.arms))
    if arm == base:
        return Cell(None if metric.relative_to_base else metric.arms[arm].score, None, "")
    difference = metric.difference(arm, base)
    return Cell(metric.arms[arm].score, difference, FINDINGS[difference.finding])


def subject_plot(metric: StudyMetric) -> SubjectPlot:
    """Lay out one metric, a row for each subject."""
    values = [value for arm in metric.arms.values() for value in arm.subjects.values()]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    subjects = list(next(iter(metric.arms.values())).subjects)
    shown = list(metric.arms.items())[1 if metric.relative_to_base else 0 :]
    rows = tuple(
        SubjectDots(name, tuple((arm, one.subjects[name], at(one.subjects[name])) for arm, one in shown))
        for name in subjects
    )
    return SubjectPlot(metric, rows, tuple(Tick(f"{t:.10g}", at(t)) for t in ticks))


def grid(subject: SubjectInfo, material: Material) -> SubjectGrid:
    """Return the first prompts of a subject by their number, the first image of each, with its first training seed."""
    shots = [s for s in material.shots if s.set == "subject" and s.image_index == 0][:SHOWN]
    pages = ((seed, Path(path).with_suffix(".html").as_posix()) for seed, path in subject.comparisons.items())
    return SubjectGrid(
        name=subject.name,
        rows=tuple(Shown(shot.prompt, picture["file"], shot.files)
                   for shot, picture in zip(shots, cycle(material.pictures), strict=False)),
        links=tuple((seed, quote(page)) for seed, page in pages),
    )  # fmt: skip


def power_rows(study: Study) -> list[PowerRow]:
    """Return what the design can see, for each claimed metric: every arm against the base, or the arms' own pairs."""
    base = study.design.arms[0]
    rows = [PowerRow(m, d) for m in claimed(study) for d in m.differences if d.power]
    return [row for row in rows if row.difference.to == base or row.metric.relative_to_base]


def mean_figures(trained: Sequence[Trained]) -> list[Figures]:
    """Return each arm's costs, as means over its trainings; memory is the most of them."""
    by_arm: dict[str, list[Figures]] = {}
    for one in figures(trained):
        by_arm.setdefault(one.arm, []).append(one)
    return [_mean(own) for own in by_arm.values()]


def _mean(own: Sequence[Figures]) -> Figures:
    sizes, paces = ([v for f in own if (v := getattr(f, name)) is not None] for name in ("file_bytes", "step_s"))
    return replace(
        own[0],
        file_bytes=fmean(sizes) if sizes else None,
        step_s=fmean(paces) if paces else None,
        train_s=fmean(f.train_s for f in own),
        class_s=fmean(f.class_s for f in own),
        train_memory_gib=max(f.train_memory_gib for f in own),
    )
