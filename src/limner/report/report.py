"""The report stage: a scored run folder in, one self-contained report.html out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.metrics.scores import MetricScore, Scores
from limner.report.charts import dot_plot, loss_plot
from limner.report.costs import costs, in_one_line, phases
from limner.report.embed import data_uri, is_small
from limner.report.material import Material, gather
from limner.report.tables import captions, command, facts, least_alike, rows_by_prompt, score_rows
from limner.report.verdict import headline, number, verdict, with_ends
from limner.rundir import RunDir, write_atomically

TEMPLATES = Path(__file__).parent / "page"
IN_CHARTS = ("subject_fidelity", "prompt_following", "class_kept")


def report(run: RunDir) -> Path:
    """Write report.html from what the run folder holds and return its path; nothing in it points outside."""
    page = _environment(run).get_template("report.html.j2").render(**_content(gather(run)))
    write_atomically(run.report, page.encode())
    return run.report


def _content(material: Material) -> dict[str, Any]:
    """Return everything that the template shows."""
    scores = material.scores
    by_set = {name: [s for s in material.shots if s.set == name] for name in ("subject", "class", "other")}
    return {
        "m": material,
        "scores": scores,
        "name": material.run.path.resolve().name,
        "headline": headline(scores),
        "verdicts": {arm: verdict(scores, arm) for arm in material.tuned},
        "first": {name: [s for s in shots if s.image_index == 0] for name, shots in by_set.items()},
        "further": {name: [s for s in shots if s.image_index > 0] for name, shots in by_set.items()},
        "captions": captions(material),
        "plots": [dot_plot(metric) for metric in _charted(scores)],
        "losses": loss_plot(material.steps),
        "rows": score_rows(scores),
        "values": {metric.key: rows_by_prompt(material, metric) for metric in scores.metrics},
        "worst": least_alike(material, material.tuned[0]),
        "one_caption": _one_caption(material),
        "costs": costs(material),
        "in_one_line": in_one_line(material),
        "phases": phases(material),
        "small": bool(material.shots) and is_small(material.run.path / material.shots[0].files[material.arms[0]]),
    }


def _charted(scores: Scores) -> list[MetricScore]:
    """Return the scores that are drawn: likeness by every encoder, the others by the first that answers them."""
    first = {metric.kind: metric.key for metric in reversed(scores.metrics)}
    shown = [m for m in scores.metrics if m.kind in IN_CHARTS]
    return [m for m in shown if m.kind == IN_CHARTS[0] or m.key == first[m.kind]]


def _one_caption(material: Material) -> str:
    """Return the caption that all training pictures share, or nothing."""
    found = {picture.get("caption") or "" for picture in material.pictures}
    return found.pop() if len(found) == 1 else ""


def _environment(run: RunDir) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def embedded(file: str) -> str:
        return data_uri(run.path / file)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = embedded
    environment.filters["command"] = command
    environment.filters["facts"] = facts
    environment.filters["number"] = number
    environment.filters["with_ends"] = with_ends
    return environment
