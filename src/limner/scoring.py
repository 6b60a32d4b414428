"""Who judges a run's pictures, and beside which other subjects: found before training, loaded for the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from limner import machine
from limner.errors import UserError
from limner.evaluate.encoders import panel_of, require_panel
from limner.evaluate.evaluate import evaluate
from limner.evaluate.ladder import evaluate_ladder
from limner.files import default_cache
from limner.prepare.distractors import find_distractors, save_distractors
from limner.recipe import Recipe
from limner.rundir import RunDir, read_json
from limner.watch import Watch


def require_judges(recipe: Recipe) -> None:
    """Refuse encoders, a model of quality or other subjects' pictures that cannot be found; nothing is loaded.

    Raises:
        UserError: names what is missing, and how to get it.
    """
    asked = recipe.evaluation
    require_panel(recipe.base, asked.encoders, asked.quality)
    if asked.distractors:
        find_distractors(asked.distractors)


def score(runs: Sequence[RunDir] | Mapping[str, RunDir], recipes: Sequence[Recipe], out: Path, watch: Watch) -> None:
    """Score runs whose pictures are drawn as their recipes ask, and write the scores; a mapping names the arms.

    Raises:
        UserError: the recipes ask for different judges.
    """
    folders = list(runs.values()) if isinstance(runs, Mapping) else runs
    first, *others = (recipe.evaluation for recipe in recipes)
    for folder, asked in zip(folders[1:], others, strict=True):
        for name in ("encoders", "quality", "distractors"):
            found, other = getattr(first, name), getattr(asked, name)
            if found != other:
                raise UserError(
                    f"Comparison refused: {folders[0].path} has evaluation.{name}={found!r}, {folder.path} {other!r}.",
                    "Give all the same, in their recipe.toml.",
                )
    if first.distractors and first.distractors.is_dir():  # else those that were kept, on another machine
        _keep_others(folders[0], recipes[0], first.distractors, watch)
    device = machine.place(recipes[0].device, recipes[0].precision).device
    panel = panel_of(recipes[0].base, first.encoders, first.quality, device)
    evaluate(runs, out, panel=panel, progress=watch.progress)
    for folder in folders:
        if any(folder.ladder.glob("*/manifest.json")):
            evaluate_ladder(folder, panel, progress=watch.progress)


def _keep_others(folder: RunDir, recipe: Recipe, distractors: Path, watch: Watch) -> None:
    """Write other subjects' pictures into a run folder, of the size of its images and without its own subject."""
    left_out = save_distractors(
        distractors,
        recipe.pictures,
        folder.distractors,
        learned={row["sha256"] for row in read_json(folder.sitter / "manifest.json")["pictures"]},
        resolution_px=read_json(folder.images / "base" / "manifest.json")["resolution_px"],
        cache=default_cache(),
    )
    for name in left_out:
        watch.say(f"evaluation.distractors: {name} is the subject's own folder, and is left out")
