"""What the arms of a comparison are called, and which settings set them apart."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from limner.errors import UserError
from limner.rundir import RunDir

METHODS = {
    ("full", False): "dreambooth",
    ("full", True): "dreambooth",
    ("lora", False): "lora",
    ("lora", True): "dreambooth-lora",
}
"""By kind of adapter and whether there is a prior; others are called by their own name."""
WITHOUT_EFFECT = ("checkpoint.", "preview.", "validation.")

Setting = str | int | float | bool | None


def arm_names(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Return a name for each recipe: its method, with the one setting or the number that makes it unique."""
    methods = [_method(recipe) for recipe in recipes]
    names = []
    for place, method in enumerate(methods):
        same = [i for i, other in enumerate(methods) if other == method]
        apart = settings_apart([recipes[i] for i in same])
        values = [value for settings in apart for value in settings.values()]
        number = same.index(place)
        if len(same) == 1:
            names.append(method)
        elif None not in values and len(set(values)) == len(values) == len(same):
            ((setting, value),) = apart[number].items()
            word = setting.rpartition(".")[2].replace("_", " ")
            shown = value.rpartition("/")[2] if isinstance(value, str) else value  # of a path or a hub name the last
            names.append(f"{method} without {word}" if value == "" else f"{method} {word} {shown}")
        else:
            names.append(f"{method}-{number + 1}")
    return names


def settings_apart(recipes: Sequence[dict[str, Any]]) -> list[dict[str, Setting]]:
    """Return each recipe's settings, as far as they are not the same in all and change what is learned."""
    flat = [dict(_flatten(recipe)) for recipe in recipes]
    names = [
        name
        for name in sorted({name for one in flat for name in one})
        if not name.startswith(WITHOUT_EFFECT) and any(one.get(name) != flat[0].get(name) for one in flat)
    ]
    return [{name: one.get(name) for name in names} for one in flat]


def read_recipe(run: RunDir) -> dict[str, Any]:
    """Return the settings that a run was made with."""
    try:
        return tomllib.loads(run.recipe.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{run.recipe}: cannot be read ({error}).", "Restore the file, or train the run anew."
        ) from error


def _method(recipe: dict[str, Any]) -> str:
    if recipe.get("objective", {}).get("kind") == "consistency":
        return "few-step"
    adapter = recipe["adapter"]
    kind: str = adapter.get("method", adapter["kind"])
    prior = recipe.get("prior", {})
    has_prior = bool(prior.get("enabled")) and prior.get("weight", 1.0) > 0
    return METHODS.get((kind, has_prior), kind.replace("_", "-"))


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Setting]]:
    rows: list[tuple[str, Setting]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str | int | float | bool) else str(value)))
    return rows
