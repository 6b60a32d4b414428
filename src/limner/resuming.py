"""What a checkpoint was made with, and what may differ when a run goes on from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limner import machine
from limner.errors import UserError
from limner.families.family import Family
from limner.prepare.memory import tell_changes
from limner.prepare.prepared import Prepared
from limner.recipe import LENGTHS, Recipe, changed, load_recipe, settings_of
from limner.result import results
from limner.rundir import RunDir, read_json, write_json
from limner.train.checkpoint import checkpoint_of, load_checkpoint, newest_checkpoint, read_made_with
from limner.train.loop import Training
from limner.watch import Watch

MAY_CHANGE = (*sorted(LENGTHS), "base", "device", "unload", "offload", "pictures.workers", "checkpoint", "preview",
              "validation", "evaluation", "generation.refiner", "generation.begun_by", "tracking")  # fmt: skip
"""Settings and sections that may differ from the checkpoint's; of the base only the name, not the weights."""


def made_with(recipe: Recipe, training: Training) -> dict[str, Any]:
    """Return what a checkpoint of this training has to be continued with."""
    return {
        "recipe": _settled(recipe).model_dump(mode="json", exclude_none=True),
        "steps": training.steps,
        "identity": training.family.identity,
        "computed": computed(recipe, training.ranks.count),
    }


def computed(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Return what decides the last bits of a result: device, threads, processes, versions."""
    versions = machine.versions()
    known = {name: versions[name] for name in ("limner", "torch", "diffusers", "transformers", "peft")}
    return {"device": machine.name_of(machine.place(recipe.device, recipe.precision).device),
            "threads": machine.threads(), "processes": processes, **known}  # fmt: skip


def check_recipe(folder: RunDir, recipe: Recipe) -> None:
    """Refuse a recipe that differs from the newest checkpoint's in what may not change; nothing is loaded for it."""
    if checkpoint := newest_checkpoint(folder.checkpoints, lambda _: None):
        then, now = _flat(_recipe_of(folder, checkpoint).model_dump()), _flat(_settled(recipe).model_dump())
        differing = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
        wrong = [key for key in differing if not any(f"{key}.".startswith(f"{name}.") for name in MAY_CHANGE)]
        if wrong:
            key = next((key for key in wrong if key.endswith(".kind")), wrong[0])
            made = f"without {key}" if then.get(key) is None else f"with {key}={_shown(then[key])}"
            says = "leaves it out" if now.get(key) is None else f"says {_shown(now[key])}"
            more = f" ({len(wrong) - 1} more settings differ)" if wrong[1:] else ""
            raise UserError(
                f"{folder.path}: cannot be resumed: its checkpoint was made {made}, and the recipe {says}{more}.",
                f"Put it back, or start a new run from these weights with init_from={folder.path}.",
            )


def require_made_alike(folder: RunDir, wanted: Recipe) -> None:
    """Refuse a run that is there and was made with other settings; what `fit` took is not one of them."""
    if not folder.recipe.is_file():
        return
    if wanted.fit not in (False, "off"):
        wanted = changed(wanted, {**read_json(folder.provenance)["fit"], "fit": False})
    then, now = settings_of(load_recipe(folder.recipe)), settings_of(wanted)
    differing = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    if differing:
        key = differing[0]
        more = f" ({len(differing) - 1} more settings differ)" if differing[1:] else ""
        raise UserError(
            f"{folder.path}: was made with {key}={then.get(key)}, and now {key}={now.get(key)} is asked for{more}.",
            "Name another folder with --run, or remove this one.",
        )


def refuse_finished(folder: RunDir, recipe: Recipe, steps: int) -> None:
    """Refuse to go on with a run of so many steps whose result is there; nothing is loaded for it.

    A checkpoint that is damaged, or newer than the result, leaves something to do.
    """
    chosen = read_json(folder.provenance).get("chosen", {})
    trained = chosen.get("trained_steps", 0)
    patience = recipe.validation.patience if chosen.get("is_early") else 0
    is_over = trained >= steps or bool(patience)
    if is_over and chosen.get("choose") == recipe.checkpoint.choose and results(folder):
        newest = newest_checkpoint(folder.checkpoints, lambda _: None)
        if newest == checkpoint_of(folder.checkpoints, trained):
            by_patience = f", ended by validation.patience={patience}" if trained < steps else ""
            way = "validation.patience=0" if by_patience else "steps=N"
            raise UserError(f"{folder.path}: is already finished: {trained} of {steps} steps{by_patience}.",
                            f"To go on with it: limner train --resume RUN {way}")  # fmt: skip


def continue_run(
    folder: RunDir,
    recipe: Recipe,
    training: Training,
    prepared: Prepared,
    watch: Watch,
    *,
    accept_dataset_change: bool = False,
) -> None:
    """Load the newest complete checkpoint, if there is one, after checking that base and pictures are the same.

    What may change a result in its last bits is said; with `accept_dataset_change` so is a change of the pictures. A
    run that was trained to its end, but whose result is missing or another's, goes on with its result alone.
    """
    newest = newest_checkpoint(folder.checkpoints, watch.say)
    if newest is None:
        folder.cut_log(0)
        folder.update_provenance(data_fingerprint=prepared.fingerprint)
        if folder.writes:
            write_json(folder.data_files, prepared.files)
        return
    made = read_made_with(newest)
    _check_base(folder, recipe, made, training.family)
    data = _check_data(folder, prepared, accept_dataset_change)
    load_checkpoint(training, newest)
    folder.cut_log(training.index)
    differences = [*data, *_differences(made["computed"], computed(recipe, training.ranks.count)),
                   *_other_schedule(training, made["steps"])]  # fmt: skip
    for line in differences:
        watch.say(line)
    resumed = {"step": training.index, "date": datetime.now(UTC).isoformat(timespec="seconds"),
               "differences": differences}  # fmt: skip
    folder.update_provenance(resumed=[*read_json(folder.provenance).get("resumed", []), resumed])
    if data:
        folder.update_provenance(data_fingerprint=prepared.fingerprint)
        if folder.writes:
            write_json(folder.data_files, prepared.files)


def _check_base(folder: RunDir, recipe: Recipe, made: Mapping[str, Any], family: Family) -> None:
    """Refuse to go on with other weights than the checkpoint's."""
    then, now = made["identity"], family.identity
    for part in then:
        if then[part] != now.get(part):
            raise UserError(
                f"{folder.path}: cannot be resumed: its checkpoint was made on the base {made['recipe']['base']} "
                f"({part} {then[part]}), and {recipe.base} is another ({part} {now.get(part)}).",
                f"Name the same base, or start a new run from these weights with init_from={folder.path}.",
            )


def _check_data(folder: RunDir, prepared: Prepared, accept: bool) -> list[str]:
    """Return the line about pictures that are not the checkpoint's; unless that is accepted, they are refused."""
    if read_json(folder.provenance).get("data_fingerprint") == prepared.fingerprint:
        return []
    what = tell_changes(read_json(folder.data_files), prepared.files)
    if not accept:
        raise UserError(f"{folder.path}: the data changed since the checkpoint ({what}), so the run cannot go on "
                        "exactly.", "Put it back, start a new run, or go on with it: accept_dataset_change=true "
                        "(the run is then no longer exact).")  # fmt: skip
    return [f"the data changed since the checkpoint ({what}): the run is no longer exact"]


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the line about another machine, other versions or other processes than those of the checkpoint."""
    other = [f"{name} {now[name]} (was {then[name]})" for name in now if then.get(name) != now[name]]
    return [f"goes on with {', '.join(other)}: results may differ in the last bits"] if other else []


def _other_schedule(training: Training, steps: int) -> list[str]:
    """Return the line about learning rates that would have been others, had the run had this length all the time."""
    spec, past = training.updates[0].spec, range(1, training.index + 1)
    if all(spec.factor(step, steps) == spec.factor(step, training.steps) for step in past):
        return []
    return [f"steps={training.steps} instead of {steps}: the learning rate goes on as in a run of {training.steps} "
            f"steps, but the first {training.index} had that of a run of {steps}"]  # fmt: skip


def _settled(recipe: Recipe) -> Recipe:
    """Return the recipe with the number format that this machine takes for it."""
    dtype = machine.place(recipe.device, recipe.precision).dtype
    return recipe.model_copy(update={"precision": str(dtype).removeprefix("torch.")})


def _recipe_of(folder: RunDir, checkpoint: Path) -> Recipe:
    try:
        return Recipe.model_validate(read_made_with(checkpoint)["recipe"])
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            f"{folder.path}: cannot be resumed: its checkpoint was made by another version of Limner, whose {key} this "
            "one does not know.",
            "Go on with that version; provenance.json names it.",
        ) from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every setting by its full name."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _shown(value: Any) -> str:
    """Return a value as it would be written in a recipe."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
