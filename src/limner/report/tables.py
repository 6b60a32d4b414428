"""The tables of the report: one row per question, and every value behind it with the pictures it comes from."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

from limner.metrics.scores import Difference, Interval, MetricScore, Scores
from limner.report.charts import prompt_means
from limner.report.material import Material, Shot
from limner.report.numbers import number

FINDINGS = {
    "better": "better",
    "worse": "worse",
    "higher": "higher",
    "lower": "lower",
    "no difference": "no difference found",
    "not conclusive": "not conclusive",
    "not tested": "size of the change",
}


@dataclass(frozen=True)
class ScoreRow:
    """One question's answer for two arms."""

    arm: str
    to: str
    to_score: Interval
    score: Interval
    difference: Difference
    finding: str
    bar: tuple[float, float, float] | None
    """Mean, low and high of the difference, in per cent of the bar's width; 50 is zero."""


@dataclass(frozen=True)
class Answer:
    """One question with its rows."""

    metric: MetricScore
    is_first: bool
    """Whether no encoder before it answered the same question."""
    to_base: tuple[ScoreRow, ...]
    between: tuple[ScoreRow, ...]
    """Tuned arms among themselves."""


@dataclass(frozen=True)
class PromptRow:
    """One prompt's values: the mean of each arm and a link to each pair of images."""

    prompt: str
    means: tuple[float, ...]
    links: tuple[tuple[str, str], ...]
    """Name of the shot to jump to, and its values in words."""


def answers(scores: Scores) -> list[Answer]:
    """Return the answers, in the order of the questions; bars have one scale for all of a kind."""
    widest: dict[str, float] = {}
    for metric in scores.metrics:
        reach = max((_reach(d.score) for d in metric.differences), default=0.0)
        widest[metric.kind] = max(reach, widest.get(metric.kind, 0.0))
    base = scores.design.arms[0]
    found: list[Answer] = []
    for metric in scores.metrics:
        rows = [_score_row(metric, difference, widest[metric.kind] or 1.0) for difference in metric.differences]
        found.append(
            Answer(
                metric=metric,
                is_first=all(answer.metric.kind != metric.kind for answer in found),
                to_base=tuple(row for row in rows if row.to == base),
                between=tuple(row for row in rows if row.to != base),
            )
        )
    return found


def rows_by_prompt(material: Material, metric: MetricScore) -> list[PromptRow]:
    """Return a metric's values prompt by prompt, each with links to its pictures."""
    means = {arm: prompt_means(metric, arm) for arm in metric.arms}
    values = {arm: material.values(metric, arm) for arm in metric.arms}
    rows = []
    for prompt in means[material.arms[0]]:
        shots = [s for s in material.shots if f"{s.set}/{s.prompt_index}" == prompt]
        links = tuple(
            (shot.name, " → ".join(number(values[arm][shot.files[arm]]) for arm in material.arms)) for shot in shots
        )
        rows.append(PromptRow(shots[0].prompt, tuple(means[arm][prompt] for arm in material.arms), links))
    return rows


def captions(material: Material) -> dict[str, tuple[str, dict[str, str]]]:
    """Return what stands at each shot's images: a word, and each arm's likeness or how far it moved."""
    words = {
        "subject": ("subject_fidelity", "likeness"),
        "class": ("class_drift", "moved by"),
        "other": ("other_drift", "moved by"),
    }
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for name, (kind, word) in words.items():
        metric = material.scores.find(kind)
        if metric is None:
            continue
        values = {
            arm: material.values(metric, arm)
            for arm in material.arms
            if not (metric.relative_to_base and arm == material.arms[0])
        }
        for shot in material.shots:
            if shot.set == name:
                found[shot.name] = (word, {arm: number(of[shot.files[arm]]) for arm, of in values.items()})
    return found


def least_alike(material: Material, arm: str, count: int = 4) -> list[Shot]:
    """Return an arm's shots that look least like the subject, the worst first; none where all are shown anyway."""
    metric = material.scores.find("subject_fidelity")
    if metric is None or len(metric.arms[arm].images) <= count:
        return []
    values, shots = material.values(metric, arm), {shot.files[arm]: shot for shot in material.shots}
    return [shots[file] for file in sorted(values, key=values.__getitem__)[:count]]


def _score_row(metric: MetricScore, difference: Difference, widest: float) -> ScoreRow:
    s = difference.score
    bar = None
    if s.low is not None and s.high is not None:
        bar = (_place(s.mean, widest), _place(s.low, widest), _place(s.high, widest))
    return ScoreRow(
        arm=difference.arm,
        to=difference.to,
        to_score=metric.arms[difference.to].score,
        score=metric.arms[difference.arm].score,
        difference=difference,
        finding=FINDINGS[difference.finding],
        bar=bar,
    )


def _reach(score: Interval) -> float:
    return max(abs(v) for v in (score.mean, score.low, score.high) if v is not None)


def _place(value: float, widest: float) -> float:
    return round(50 + 48 * value / widest, 2)


def command(value: str | list[str]) -> str:
    """Return the command as it can be typed again, without the folder of the program."""
    if isinstance(value, str):
        return value
    return shlex.join([PurePath(value[0]).name, *value[1:]])


def facts(value: object) -> str:
    """Return a value of the provenance as a line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {facts(v)}" for key, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return ", ".join(facts(v) for v in value)
    if isinstance(value, float):
        return f"{value:,.10g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def setting(value: str | int | float | bool | None) -> str:
    """Return a setting as a recipe writes it; a dash where a recipe has none."""
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
