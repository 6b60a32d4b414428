"""The model card: what was learned, how to use it and what was measured, as the README.md that a model hub shows."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from limner.families.source import is_hub_name
from limner.metrics.scores import MetricScore
from limner.report.costs import figures, in_one_line
from limner.report.material import Material, Trained
from limner.report.numbers import number, with_ends
from limner.report.tables import FINDINGS
from limner.report.verdict import verdict
from limner.rundir import write_atomically

TEMPLATES = Path(__file__).parent / "page"
SETTINGS = ("steps", "epochs", "exposures", "batch", "accumulate", "resolution", "learning_rate")
SHOWN = 4
"""How many prompts are shown: the first ones, whatever they look like."""


def model_card(material: Material) -> Path:
    """Write README.md into the folder of the run that a material is of, and return it; its pictures are the run's."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,  # noqa: S701 - Markdown, not HTML; what comes from the user goes through `plain`
    )  # fmt: skip
    environment.filters |= {"plain": plain, "yaml": json.dumps}
    out = material.trained[0].run.path / "README.md"
    text = environment.get_template("model_card.md.j2").render(**_content(material))
    write_atomically(out, text.encode())
    return out


def plain(text: object) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    return " ".join(str(text).split()).translate({ord(mark): f"&#{ord(mark)};" for mark in "&\\`*[]<>|#"})


def _content(material: Material) -> dict[str, Any]:
    """Return everything that the template shows."""
    (trained,) = material.trained
    scores, arm, base = material.scores, material.tuned[0], material.arms[0]
    recipe: dict[str, Any] = tomllib.loads(trained.recipe)
    pictures = recipe.get("pictures", {})
    shots = [shot for shot in material.shots if shot.set == "subject" and shot.image_index == 0][:SHOWN]
    words = sorted(path.stem for path in (trained.run.path / "embeddings").glob("*.safetensors"))
    name = f"{pictures.get('token', '')} {pictures.get('class_noun', '')}".strip() or trained.name
    return {
        "name": name,
        "base": material.base if is_hub_name(material.base) else "",
        "base_words": material.base if is_hub_name(material.base) else Path(material.base).name,
        "kind": recipe.get("adapter", {}).get("kind", ""),
        "tags": _tags(trained, recipe),
        "prompt": shots[0].prompt if shots else f"a photo of {name}",
        "shots": [
            (shot.prompt, *(shot.files[side].relative_to(trained.run.path) for side in (base, arm))) for shot in shots
        ],
        "verdict": verdict(scores, arm),
        "cost": in_one_line(figures(material.trained)[0]),
        "file": trained.file,
        "words": words,
        "has_lora": trained.run.adapter.is_file(),
        "rows": [(m, _row(m, arm, base)) for m in scores.metrics],
        "encoders": [f"{e.name} ({e.identity})" for e in scores.encoders],
        "pictures": len(material.pictures),
        "design": scores.design,
        "settings": {key: recipe[key] for key in SETTINGS if recipe.get(key)},
        "versions": trained.provenance.get("versions", {}),
        "date": trained.provenance.get("date", "")[:10],
    }  # fmt: skip


def _tags(trained: Trained, recipe: dict[str, Any]) -> list[str]:
    """Return the words by which a hub finds the model."""
    found = ["text-to-image", "stable-diffusion", "diffusers", "limner"]
    if trained.run.adapter.is_file():
        found.append("lora")
    if trained.run.model.is_dir() or recipe.get("prior", {}).get("enabled"):
        found.append("dreambooth")
    if (trained.run.path / "embeddings").is_dir():
        found.append("textual_inversion")
    return found


def _row(metric: MetricScore, arm: str, base: str) -> tuple[str, str, str, str]:
    """Return a metric's base, tuned, difference and finding, as the report says them."""
    difference = metric.difference(arm, base)
    first = "–" if metric.relative_to_base else number(metric.arms[base].score.mean)
    return (
        first,
        number(metric.arms[arm].score.mean),
        with_ends(difference.score, sign=True),
        FINDINGS[difference.finding],
    )
