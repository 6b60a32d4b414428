"""The page of a comparison over subjects and training seeds: one self-contained file beside study.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.metrics.scores import read_written
from limner.metrics.study import DELTAS, Study
from limner.report.axes import axes, measured_of
from limner.report.charts import dot_plot
from limner.report.costs import cost_rows
from limner.report.embed import is_small
from limner.report.ladder import ladder_part
from limner.report.material import Material, gather
from limner.report.plane import planes
from limner.report.report import environment
from limner.report.study_parts import by_subject, claimed, grid, matrix, mean_figures, power_rows, subject_plot
from limner.report.tables import FINDINGS
from limner.report.which import HEADLINES, headline, which_for_what, who_learned
from limner.rundir import RunDir, read_json, write_atomically


def report_study(path: Path) -> Path:
    """Write the page about a study.json beside it, and return its path; pictures are in it, nothing is loaded."""
    study = read_written(Study, path, "Delete it, and compare again.")
    materials = {(s.name, seed): _gather(path.parent / at) for s in study.design.subjects
                 for seed, at in s.comparisons.items()}  # fmt: skip
    page = environment(study.design.arms).get_template("study.html.j2").render(**_content(study, materials, path))
    out = path.with_suffix(".html")
    write_atomically(out, page.encode())
    return out


def _gather(comparison: Path) -> Material:
    """Read the runs behind one comparison."""
    runs = read_json(comparison)["design"]["runs"].values()
    return gather([RunDir(comparison.parent / run["folder"]) for run in runs], comparison)


def _content(study: Study, materials: dict[tuple[str, str], Material], path: Path) -> dict[str, Any]:
    """Return everything that the template shows."""
    metrics, base = claimed(study), study.design.arms[0]
    first = [materials[s.name, next(iter(s.comparisons))] for s in study.design.subjects]
    tuned = study.design.arms[1:]
    costs = mean_figures(_trained(materials.values()))
    ladders = list(filter(None, map(ladder_part, first[0].trained)))
    return {
        "study": study,
        "design": study.design,
        "base": first[0].base,
        "path": path,
        "date": first[0].trained[0].provenance.get("date", "")[:10],
        "headline": _headline(study),
        "which": list(filter(None, (who_learned(study), *which_for_what(study)))),
        "claimed": metrics,
        "matrix": matrix(study, metrics),
        "to_base": {arm: [(m, m.difference(arm, base)) for m in metrics] for arm in tuned},
        "between": [(m, [d for d in m.differences if d.to != base]) for m in metrics] if len(tuned) > 1 else [],
        "findings": FINDINGS,
        "axes": axes(
            study, costs, {part.arm: part.ladder for part in ladders}, measured_of(first[0].trained), study=True
        ),
        "ladders": ladders,
        "planes": planes(study, {m.key: by_subject(m) for m in study.metrics}),
        "plots": [dot_plot(m, by_subject(m)) for m in metrics],
        "by_subject": [subject_plot(m) for m in metrics] if len(study.design.subjects) > 1 else [],
        "grids": [grid(s, m) for s, m in zip(study.design.subjects, first, strict=True)],
        "small": bool(first[0].shots) and is_small(first[0].shots[0].files[base]),
        "cost_rows": cost_rows(costs),
        "power": power_rows(study),
        "deltas": [str(delta) for delta in DELTAS],
        "apart": {arm: run.settings for arm, run in first[0].scores.design.runs.items()},
        "limits": study.limits,
    }


def _headline(study: Study) -> str:
    """Return the answer in a few words, naming what there is too little of."""
    text = headline(study)
    few = text == HEADLINES["not conclusive"] and study.design.unit == "subject"
    return "Too few subjects to tell." if few else text


def _trained(materials: Any) -> Sequence[Any]:
    return [one for material in materials for one in material.trained]
