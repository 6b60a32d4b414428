"""The page about several adapters drawn together: the bleed matrix and the pictures behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.metrics.bleed import Bleed, Cell
from limner.metrics.scores import read_written
from limner.report.embed import is_small
from limner.report.report import environment
from limner.rundir import read_json, write_atomically

SHOWN = 4
"""How many prompts of each trigger are shown: the first ones, whatever they look like."""


@dataclass(frozen=True)
class Row:
    """One prompt with a trigger's own adapter alone, and with all at work."""

    prompt: str
    alone: Path
    together: Path


def report_bleed(folder: Path, pictures: Mapping[str, Path]) -> Path:
    """Write the page about a folder's bleed.json into it and return its path; `pictures` are the subjects' folders."""
    found = read_written(Bleed, folder / "bleed.json", "Delete it, and measure again.")
    page = environment(found.names).get_template("bleed.html.j2").render(**_content(found, folder, pictures))
    out = folder / "bleed.html"
    write_atomically(out, page.encode())
    return out


def _content(found: Bleed, folder: Path, pictures: Mapping[str, Path]) -> dict[str, Any]:
    rows = {name: _rows(folder / "images", name) for name in found.names}
    low = min(cell.together.mean for cell in found.cells)
    high = max(cell.together.mean for cell in found.cells)
    return {
        "bleed": found,
        "rows": rows,
        "real": {name: _real(place) for name, place in pictures.items()},
        "shade": lambda cell: _shade(cell, low, high),
        "small": is_small(next(iter(rows.values()))[0].alone),
    }


def _rows(images: Path, name: str) -> list[Row]:
    """Return the first image of the first prompts."""
    made = [one for one in read_json(images / "together" / name / "manifest.json")["images"] if not one["image_index"]]
    return [
        Row(one["prompt"], images / "alone" / name / one["file"], images / "together" / name / one["file"])
        for one in made[:SHOWN]
    ]


def _real(folder: Path) -> list[Path]:
    return [folder / row["file"] for row in read_json(folder / "manifest.json")["pictures"]][:SHOWN]


def _shade(cell: Cell, low: float, high: float) -> float:
    """Return how dark a cell is, from 0 to 1."""
    return round((cell.together.mean - low) / (high - low), 3) if high > low else 0.0
