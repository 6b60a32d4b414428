"""The report stage: scored runs in, one self-contained HTML file out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.metrics.scores import MetricScore, Scores
from limner.report.axes import axes, measured_of
from limner.report.buckets import bucket_rows
from limner.report.charts import by_prompt, dot_plot, loss_plot
from limner.report.costs import cheapest, cost_rows, costs, figures, in_one_line, phases
from limner.report.course import course_plots, films
from limner.report.embed import data_uri, is_small
from limner.report.inference import speed
from limner.report.ladder import ladder_part
from limner.report.material import Material, gather
from limner.report.model_card import model_card
from limner.report.numbers import number, with_ends
from limner.report.plane import planes
from limner.report.tables import answers, captions, command, facts, least_alike, rows_by_prompt, setting
from limner.report.verdict import verdict
from limner.report.which import headline, which_for_what, who_learned
from limner.rundir import RunDir, write_atomically

TEMPLATES = Path(__file__).parent / "page"
IN_CHARTS = ("subject_fidelity", "prompt_following", "class_kept")
COLOURS = 6
"""How many colours the page has for tuned arms."""


def report(runs: Sequence[RunDir], scores: Path, out: Path) -> Path:
    """Write the page about one run, or about several side by side, and return its path; nothing in it points outside.

    A run alone gets its model card too: README.md in its folder.

    `scores` is what evaluate wrote about these runs.
    """
    material = gather(runs, scores)
    page = environment(material.arms).get_template("report.html.j2").render(**_content(material))
    write_atomically(out, page.encode())
    if len(runs) == 1:
        model_card(material)
    return out


def _content(material: Material) -> dict[str, Any]:
    """Return everything that the template shows."""
    scores = material.scores
    by_set = {name: [s for s in material.shots if s.set == name] for name in ("subject", "class", "other")}
    several = len(material.trained) > 1
    own = figures(material.trained)
    ladders = list(filter(None, map(ladder_part, material.trained)))
    return {
        "m": material,
        "scores": scores,
        "several": several,
        "name": ", ".join(one.name for one in material.trained),
        "headline": headline(scores),
        "verdicts": {arm: verdict(scores, arm) for arm in material.tuned},
        "which": list(filter(None, (who_learned(scores), *which_for_what(scores)))),
        "cheapest": cheapest(own) if several else "",
        "first": {name: [s for s in shots if s.image_index == 0] for name, shots in by_set.items()},
        "further": {name: [s for s in shots if s.image_index > 0] for name, shots in by_set.items()},
        "captions": captions(material),
        "plots": [dot_plot(metric, by_prompt(metric)) for metric in _charted(scores)],
        "planes": planes(scores, _with_same_prompts(scores)) if several else [],
        "ladders": ladders,
        "axes": axes(scores, own, {part.arm: part.ladder for part in ladders}, measured_of(material.trained)),
        "losses": loss_plot({one.arm: one.steps + one.validations for one in material.trained}),
        "course_plots": course_plots(material.trained),
        "films": films(material.trained),
        "answers": answers(scores),
        "values": {metric.key: rows_by_prompt(material, metric) for metric in scores.metrics},
        "worst": {arm: least_alike(material, arm) for arm in material.tuned},
        "one_caption": _one_caption(material),
        "buckets": bucket_rows(material.fitting),
        "sitter": f"{len(material.held_out)} held-out pictures" if material.held_out else "training pictures",
        "costs": [] if several else costs(material.trained[0]),
        "cost_rows": cost_rows(own) if several else {},
        "in_one_line": {one.arm: in_one_line(one) for one in own},
        "speed": speed(material),
        "phases": [] if several else phases(material.trained[0]),
        "small": bool(material.shots) and is_small(material.shots[0].files[material.arms[0]]),
    }


def _charted(scores: Scores) -> list[MetricScore]:
    """Return the scores that are drawn: likeness by every encoder, the others by the first that answers them."""
    first = {metric.kind: metric.key for metric in reversed(scores.metrics)}
    shown = [m for m in scores.metrics if m.kind in IN_CHARTS]
    return [m for m in shown if m.kind == IN_CHARTS[0] or m.key == first[m.kind]]


def _with_same_prompts(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """Return the prompts' means of the metrics that are taken from the subject's prompts."""
    return {m.key: by_prompt(m) for m in scores.metrics if m.sets == ("subject",)}


def _one_caption(material: Material) -> str:
    """Return the caption that all training pictures share, or nothing."""
    found = {picture.get("caption") or "" for picture in material.pictures}
    return found.pop() if len(found) == 1 else ""


def environment(arms: Sequence[str]) -> Any:
    """Return what fills the templates, with a colour for each arm."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def hue(arm: str) -> str:
        """Return an arm's colours as a style: on the page, and behind white text."""
        place = arms.index(arm)
        number = 0 if place == 0 else (place - 1) % COLOURS + 1
        return f"--hue:var(--arm-{number});--solid:var(--solid-{number})"

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": data_uri, "command": command, "facts": facts, "number": number, "with_ends": with_ends, "hue": hue,
        "setting": setting,
    }  # fmt: skip
    return environment
