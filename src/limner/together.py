"""Several runs' adapters on one base at once: how far each gets into the others' subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from limner import machine
from limner.adapter_set import AdapterSet
from limner.conflicts import require_use
from limner.drawing import follow_objective, load_base, say_faults
from limner.errors import UserError
from limner.evaluate.bleed import Sitter, bleed
from limner.evaluate.encoders import panel_of
from limner.families.family import Family
from limner.generate.draw import check_resolution, draw
from limner.metrics.encoder import TextImageEncoder
from limner.recipe import Recipe, load_recipe
from limner.refining import check_partner, load_partner, require_beginning
from limner.report.bleed import report_bleed
from limner.result import require_result
from limner.rundir import RunDir, unused, write_json
from limner.watch import Watch

OF_USE = ("generation", "evaluation", "resolution", "device", "precision")


def measure_bleed(
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Path:
    """Draw each run's prompts with its own adapter and with all at once, compare, and return the page.

    `settings` are laid over the first run's recipe, whose prompts and sampler all share.

    Raises:
        UserError: fewer than two runs, or runs that cannot act together: other bases, one token, whole models.
    """
    watch = watch or Watch()
    folders = [RunDir.open(Path(path)) for path in runs]
    require_use(settings or {}, OF_USE, "bleed")
    recipes = [load_recipe(folder.recipe, settings) for folder in folders]
    _check(folders, recipes)
    shared = recipes[0]
    check_partner(shared)
    require_beginning(shared, "bleed")
    out = Path(out) if out else unused(folders[0].path.parent, "bleed")
    if out.is_file():
        raise UserError(f"--out {out}: is a file.", "Name a folder.")
    family = load_base(shared, watch)
    load_partner(family, shared, watch)
    follow_objective(family, shared)
    acting = AdapterSet(family)
    names = [acting.load(folder.path) for folder in folders]
    sitters = [
        Sitter(name, recipe.pictures.subject, folder.pictures,
               out / "images" / "alone" / name, out / "images" / "together" / name)
        for name, folder, recipe in zip(names, folders, recipes, strict=True)
    ]  # fmt: skip
    for how in ("alone", "together"):
        for sitter, recipe in zip(sitters, recipes, strict=True):
            acting.set(dict.fromkeys(names if how == "together" else [sitter.name], 1.0))
            with watch.phase(f"draw {sitter.name} {how}"):
                _draw(family, shared, recipe, getattr(sitter, how), sorted(acting.active), watch)
    acting.set({})
    del family
    device = machine.place(shared.device, shared.precision).device
    judges = panel_of(shared.base, shared.evaluation.encoders, device=device).encoders
    judge = next((one for one in judges if not isinstance(one, TextImageEncoder)), judges[0])
    with watch.phase("compare"):
        found = bleed(shared.base, sitters, judge, progress=watch.progress)
    for line in found.lines:
        watch.say(line)
    write_json(out / "bleed.json", found.model_dump(mode="json"))
    return report_bleed(out, {one.name: one.pictures for one in sitters})


def _draw(family: Family, shared: Recipe, recipe: Recipe, out: Path, acting: list[str], watch: Watch) -> None:
    """Draw the prompts of one run's subject with what acts."""
    asked = shared.evaluation.requests(recipe.pictures.token, recipe.pictures.class_noun or "picture")
    made = draw(
        family, [one for one in asked if one.set == "subject"], out, sampling=shared.generation, replace=True,
        about={"base": shared.base, "adapters": acting}, progress=watch.progress,
        resolution_px=check_resolution(family, shared.resolution),
    )  # fmt: skip
    say_faults(made, str(out), watch, tuned=True)


def _check(folders: Sequence[RunDir], recipes: Sequence[Recipe]) -> None:
    """Refuse runs that cannot act together."""
    if len(folders) < 2:
        raise UserError("bleed: one run bleeds into nothing.", "Name two or more runs of different subjects.")
    for folder, recipe in zip(folders, recipes, strict=True):
        require_result(folder)
        if folder.model.is_dir():
            hint = f"Take a LoRA out of it: limner extract {folder.path} {recipe.base} --out FILE rank=16"
            raise UserError(f"{folder.path}: is a whole model, and only adapters act together.", hint)
        if recipe.pictures.subjects:
            raise UserError(f"{folder.path}: holds several subjects in one adapter.", "Give runs of one subject each.")
    for (a, one), (b, other) in combinations(zip(folders, recipes, strict=True), 2):
        if one.base != other.base or one.objective.prediction_type != other.objective.prediction_type:
            raise UserError(f"bleed: {a.path} is on {one.base}, {b.path} on {other.base}, or they predict otherwise.",
                            "Give runs on one base with one objective.")  # fmt: skip
        if one.pictures.token == other.pictures.token:
            token = one.pictures.token
            raise UserError(f"bleed: {a.path} and {b.path} have the same trigger {token!r}, so every prompt asks for "
                            "both.", "Train one of them with another pictures.token.")  # fmt: skip
