"""The main job on the embedded base and five shipped pictures: each method trains, and one page compares them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.errors import UserError
from limner.families.source import ASSETS
from limner.recipe import load_recipe
from limner.run import evaluate, report, train
from limner.rundir import unused
from limner.watch import Watch

DEMO_ARMS: dict[str, dict[str, Any]] = {
    "lora": {"prior.enabled": False},
    "dreambooth": {"adapter.kind": "full", "learning_rate": 6e-4, "adapter.text_encoder_learning_rate": 1e-4},
    "dreambooth-lora": {},
}
"""The methods that the demo compares, as settings over its recipe."""


def demo(
    run: str | Path | None = None, *, settings: Mapping[str, Any] | None = None, watch: Watch | None = None
) -> Path:
    """Do the main job on the embedded base and five shipped pictures with each method; return the page that compares.

    LoRA, DreamBooth, and LoRA + DreamBooth train on the same pictures and are judged side by side.
    """
    watch = watch or Watch()
    folder = Path(run) if run else unused(Path("runs"), "demo")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty.", "Name another folder with --run.")
    recipes = {arm: load_recipe("demo", {**own, **(settings or {})}) for arm, own in DEMO_ARMS.items()}
    arms = []
    for arm, recipe in recipes.items():
        watch.say(f"{arm}:")
        arms.append(train(ASSETS / "demo" / "critter", recipe=recipe, run=folder / arm, watch=watch).path)
    evaluate(arms, watch=watch)
    return report(arms, watch=watch)
