"""Fills the page of settings from the recipe's own schema each time that the documentation is built."""

from __future__ import annotations

import json
import typing
from typing import Any

from pydantic.fields import FieldInfo

from limner.recipe import Recipe, setting_names

HERE = "<!-- every setting -->"


def on_page_markdown(markdown: str, **_page: Any) -> str:
    """Put the tables where the page asks for them (called by mkdocs for every page)."""
    return markdown.replace(HERE, settings()) if HERE in markdown else markdown


def settings() -> str:
    """Return one table for each section of the recipe, the top of the recipe first."""
    sections: dict[str, list[str]] = {"": []}
    for name, field, kinds in setting_names():
        section, _, _ = name.rpartition(".")
        words = " ".join((field.description or "").split()).replace("|", "\\|")
        words += f" With `kind` {', '.join(kinds)}." if kinds else ""
        sections.setdefault(section, []).append(f"| `{name}` | {kind(field.annotation)} | {default(field)} | {words} |")
    return "\n\n".join("\n".join([*heading(section), *rows]) for section, rows in sections.items())


def heading(section: str) -> list[str]:
    """Return a section's title, what it is about, and the head of its table."""
    about = Recipe.model_fields[section.split(".")[0]].description if section else "What most people set."
    title = f"## `{section}`" if section else "## At the top"
    return [title, "", about or "", "", "| setting | kind | default | what it does |", "|---|---|---|---|"]


def default(field: FieldInfo) -> str:
    """Return the default as it may stand in a recipe: JSON is also TOML, for text, numbers, true, false and lists."""
    if field.is_required():
        return "none: must be given"
    value = field.get_default(call_default_factory=True)
    return "nothing" if value is None else f"`{json.dumps(value)}`"


def kind(annotation: Any) -> str:
    """Return what a value may be, in words."""
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{json.dumps(word)}`" for word in typing.get_args(annotation))
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (list, tuple, set):
        return f"list of {kind(parts[0])}"
    if parts:
        return " or ".join("nothing" if part is type(None) else kind(part) for part in parts)
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )
