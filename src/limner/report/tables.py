"""The tables of the report: one row per question, and every value behind it with the pictures it comes from."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

from limner.metrics.scores import Difference, Interval, MetricScore, Scores
from limner.report.charts import prompt_means
from limner.report.material import Material, Shot
from limner.report.verdict import number

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
    """One question's answer for one tuned arm."""

    metric: MetricScore
    arm: str
    base: Interval
    tuned: Interval
    difference: Difference
    finding: str
    bar: tuple[float, float, float] | None
    """Mean, low and high of the difference, in per cent of the bar's width; 50 is zero."""


@dataclass(frozen=True)
class PromptRow:
    """One prompt's values: the mean of each arm and a link to each pair of images."""

    prompt: str
    means: tuple[float, ...]
    links: tuple[tuple[str, str], ...]
    """Name of the shot to jump to, and its values in words."""


def score_rows(scores: Scores) -> list[ScoreRow]:
    """Return the answers, in the order of the questions."""
    widest = max((_reach(d.score) for m in scores.metrics for d in m.differences), default=1.0) or 1.0
    rows = []
    for metric in scores.metrics:
        base = metric.arms[scores.design.arms[0]].score
        for difference in metric.differences:
            s = difference.score
            bar = None
            if s.low is not None and s.high is not None:
                bar = (_place(s.mean, widest), _place(s.low, widest), _place(s.high, widest))
            tuned = metric.arms[difference.arm].score
            rows.append(ScoreRow(metric, difference.arm, base, tuned, difference, FINDINGS[difference.finding], bar))
    return rows


def rows_by_prompt(material: Material, metric: MetricScore) -> list[PromptRow]:
    """Return a metric's values prompt by prompt, each with links to its pictures."""
    means = {arm: prompt_means(metric, arm) for arm in metric.arms}
    values = {arm: {image.file: image.value for image in score.images} for arm, score in metric.arms.items()}
    rows = []
    for prompt in means[material.arms[0]]:
        shots = [s for s in material.shots if f"{s.set}/{s.prompt_index}" == prompt]
        links = tuple(
            (shot.name, " → ".join(number(values[arm][shot.files[arm]]) for arm in material.arms)) for shot in shots
        )
        rows.append(PromptRow(shots[0].prompt, tuple(means[arm][prompt] for arm in material.arms), links))
    return rows


def captions(material: Material) -> dict[str, str]:
    """Return what stands under each pair of images: its likeness, or how far it moved."""
    words = {
        "subject": ("subject_fidelity", "likeness"),
        "class": ("class_drift", "moved by"),
        "other": ("other_drift", "moved by"),
    }
    found: dict[str, str] = {}
    for shot in material.shots:
        kind, word = words.get(shot.set, ("", ""))
        metric = material.scores.find(kind)
        if metric is None:
            continue
        values = {
            arm: next((i.value for i in metric.arms[arm].images if i.file == shot.files[arm]), None)
            for arm in material.arms
        }
        shown = [
            v
            for arm, v in values.items()
            if v is not None and not (metric.relative_to_base and arm == material.arms[0])
        ]
        found[shot.name] = f"{word} " + " → ".join(number(v) for v in shown)
    return found


def least_alike(material: Material, arm: str, count: int = 4) -> list[Shot]:
    """Return an arm's shots that look least like the subject, the worst first; none where all are shown anyway."""
    metric = material.scores.find("subject_fidelity")
    if metric is None or len(metric.arms[arm].images) <= count:
        return []
    shots = {shot.files[arm]: shot for shot in material.shots}
    return [shots[i.file] for i in sorted(metric.arms[arm].images, key=lambda i: i.value)[:count]]


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
