"""Few-step adapters: from a base, or a run's subject on it, and pictures that are given or that the base draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from limner.conflicts import check_settings, refuse_idle
from limner.errors import UserError
from limner.families.source import is_hub_name, locate
from limner.fitting import plan_memory
from limner.planning import Told, plan_run
from limner.recipe import Recipe, load_recipe
from limner.result import require_result
from limner.run import plan, train
from limner.rundir import RunDir, unused
from limner.taught import draw_taught, expected, prompts_of, with_prompts_to_look_at
from limner.underlying import check_underlying
from limner.watch import Watch

IMAGES = 200
"""How many pictures the base draws where none are given and no number is."""
OF_THE_RUN = ("generation", "evaluation", "resolution", "precision", "device")
"""What is taken over from a run: its subject is then drawn and compared as it was."""
Paths = Sequence[str | Path]


def distill(
    source: str | Path,
    pictures: Paths = (),
    *,
    recipe: str | Path = "few-step",
    settings: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    watch: Watch | None = None,
) -> RunDir:
    """Teach an adapter to draw in few steps what a base, or a run's subject on its base, draws in many.

    Without pictures the base draws them, from the prompts of `distill.prompts` or `distill.words`. The run goes on
    with `resume`, as any other.

    Raises:
        UserError: something that the user can mend, found before the base is loaded.
    """
    watch = watch or Watch()
    resolved, lines = _checked(source, pictures, recipe, settings or {})
    for line in lines:
        watch.say(line)
    place = Path(run) if run else unused(Path("runs"), f"few-step-{Path(source).name}")
    with suppress(OSError):  # refuses a folder that is in use, before pictures are drawn
        RunDir.create(place, name="").path.rmdir()
    paths = [*pictures] or [draw_taught(resolved, watch, subject=resolved.distill.adapter)]
    return train(paths, recipe=resolved, run=place, watch=watch)


def plan_distill(
    source: str | Path,
    pictures: Paths = (),
    *,
    recipe: str | Path = "few-step",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Told:
    """Return what `distill` will need, phase by phase; nothing is drawn for it."""
    watch = watch or Watch()
    resolved, lines = _checked(source, pictures, recipe, settings or {})
    for line in lines:
        watch.say(line)
    if pictures:
        return plan([*pictures], recipe=resolved, watch=watch)
    drawn = expected(resolved)
    length = plan_run(resolved, drawn, 0, watch)
    with watch.phase("plan"):
        return plan_memory(resolved, drawn, length)


def _checked(
    source: str | Path, pictures: Paths, recipe: str | Path, settings: Mapping[str, Any]
) -> tuple[Recipe, list[str]]:
    """Return the recipe of the run to be, and what is to be said of it; what is wrong is said before all else."""
    if "base" in settings:
        raise UserError(f"base={settings['base']}: the base is named already ({source}).", "Leave base out.")
    if pictures:
        refuse_idle(settings, {"distill.images": "pictures are given"})
    path = Path(source)
    is_run = (path / "recipe.toml").is_file()
    if not is_run and locate(str(source)) is None and not is_hub_name(str(source)):
        raise UserError(f"{source}: there is no such run folder or base.", "Give a run's folder, or a base (tiny).")
    own = _of_run(RunDir.open(path)) if is_run else {"base": str(source)}
    drawn = {} if pictures else {"distill.images": IMAGES}
    resolved = load_recipe(recipe, {**own, **drawn, **settings})
    if not resolved.learns_few_steps:
        raise UserError(f"--recipe {recipe}: objective.kind is {resolved.objective.kind}, which teaches no few steps.",
                        "Use --recipe few-step, or set objective.kind=consistency.")  # fmt: skip
    if not pictures and not resolved.distill.images:
        raise UserError("distill.images=0: no pictures were given either.", "Give a folder, or draw some.")
    resolved = resolved if pictures else with_prompts_to_look_at(resolved)
    lines = check_settings(resolved, given=settings)
    check_underlying(resolved)
    if not pictures:
        prompts_of(resolved)
    return resolved, lines


def _of_run(folder: RunDir) -> dict[str, Any]:
    """Return what a run's subject is taught with: its base beneath it, its words, and how it was drawn.

    A run that trained a whole model is a base itself.
    """
    require_result(folder)
    recipe = load_recipe(folder.recipe)
    held = recipe.model_dump(mode="json", exclude_none=True)
    settings: dict[str, Any] = {name: held[name] for name in OF_THE_RUN}
    settings |= {"pictures.token": recipe.pictures.token}
    if recipe.pictures.class_noun:
        settings["pictures.class_noun"] = recipe.pictures.class_noun
    if folder.model.is_dir():
        return {**settings, "base": str(folder.model)}
    return {**settings, "base": recipe.base, "distill.adapter": str(folder.path)}
