"""The page of a sweep: every variant's figures and pictures, likeness against forgetting, and which one is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.metrics.scores import read_written
from limner.metrics.sweep import Standing, Sweep, Swept, SweptMetric
from limner.report.course import first_images
from limner.report.embed import is_small
from limner.report.numbers import in_bytes, in_time, with_ends
from limner.report.plane import planes
from limner.report.report import environment
from limner.rundir import RunDir, read_json, write_atomically

BASE = "base"
PLANES = (("subject_fidelity", "class_drift"), ("subject_fidelity", "prompt_following"))
SHOWN = (("subject", 4), ("class", 2))
"""How many prompts of each kind are shown: the first ones, whatever they look like."""
BADGES: dict[Standing, str] = {"taken": "better", "less alike": "worse"}
"""The look of a standing, by the findings of the other pages."""


@dataclass(frozen=True)
class Row:
    """One prompt, with the picture that the base and each variant made of it."""

    prompt: str
    files: dict[str, Path]


def report_sweep(path: Path) -> Path:
    """Write the page about a sweep.json beside it, and return its path; pictures are in it, nothing is loaded."""
    found = read_written(Sweep, path, "Delete it, and sweep again.")
    label = labels(found)
    made = environment(list(label.values()))
    made.filters["hue"] = lambda arm: _hue(arm, label.get(found.taken or "", ""))
    page = made.get_template("sweep.html.j2").render(**_content(found, path, label))
    out = path.with_suffix(".html")
    write_atomically(out, page.encode())
    return out


def table(found: Sweep) -> list[str]:
    """Return the figures of every variant as lines, for a terminal."""
    titles = (
        "variant",
        *(metric.kind.replace("_", " ") for metric in found.metrics),
        f"likeness to {'the one taken' if found.taken else 'the base'} (99 %)",
    )
    rows = [titles] + [(name, *_figures(found.metrics, name), _standing(one)) for name, one in found.variants.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _figures(metrics: Sequence[SweptMetric], name: str) -> list[str]:
    return [with_ends(metric.arms[name].score) if name in metric.arms else "–" for metric in metrics]


def _standing(one: Swept) -> str:
    return " ".join(filter(None, (one.standing, with_ends(one.to_taken, sign=True) if one.to_taken else "")))


def _content(found: Sweep, path: Path, label: dict[str, str]) -> dict[str, Any]:
    """Return everything that the template shows."""
    relabelled = found.model_copy(
        update={
            "metrics": tuple(
                metric.model_copy(update={"arms": {label[name]: arm for name, arm in metric.arms.items()}})
                for metric in found.metrics
            )
        }
    )
    runs = {name: RunDir(path.parent / one.run) for name, one in found.variants.items()}
    rows = _rows(found, runs)
    first = runs[found.judged[0]]
    return {
        "sweep": found,
        "axes": list(next(iter(found.variants.values())).settings),
        "label": label,
        "planes": planes(relabelled, {}, PLANES),
        "rows": rows,
        "real": [first.pictures / row["file"] for row in read_json(first.pictures / "manifest.json")["pictures"]][:6],
        "badges": BADGES,
        "in_time": in_time,
        "in_bytes": in_bytes,
        "small": is_small(next(iter(rows[0].files.values()))),
        "path": path,
    }


def labels(found: Sweep) -> dict[str, str]:
    """Return a short name for each variant: its values alone."""
    short = {
        name: "\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}".join(one.settings.values())
        for name, one in found.variants.items()
    }
    return {BASE: BASE, **short}


def _hue(arm: str, taken: str) -> str:
    """Return an arm's colours: the base's own, one for the variant that is taken, one for all others."""
    place = 0 if arm == BASE else 1 if arm == taken else 2
    return f"--hue:var(--arm-{place});--solid:var(--solid-{place})"


def _rows(found: Sweep, runs: Mapping[str, RunDir]) -> list[Row]:
    """Return the first image of the first prompts: the base's, and each variant's at the step of its result."""
    images = {BASE: first_images(runs[found.judged[0]].validation / "step-000000")}
    for name in found.judged:
        images[name] = first_images(runs[name].validation / f"step-{found.variants[name].step:06d}")
    wanted = [(kind, index) for kind, count in SHOWN for index in range(count)]
    return [
        Row(images[BASE][place][0], {arm: own[place][1] for arm, own in images.items() if place in own})
        for place in wanted
        if place in images[BASE]
    ]
