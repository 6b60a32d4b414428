"""One run's training, from checked pictures to the verified result: what a new and a resumed run share."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limner.adapters.adapter import Attached, SlotSettings
from limner.drawing import class_pictures as class_pictures_for
from limner.drawing import follow_objective, load_base, preview
from limner.errors import Interrupted, UserError
from limner.families.family import Family
from limner.families.load import fingerprint
from limner.generate.draw import check_resolution
from limner.interrupt import noted_signals
from limner.pictures.cache import default_cache
from limner.prepare.check import Checked
from limner.prepare.encode import prepare
from limner.prepare.memory import tell_changes
from limner.prepare.plan import Plan, batch_notes, plan_length
from limner.prepare.prepared import Prepared
from limner.prepare.save import save_pictures
from limner.prepare.subjects import spec_of
from limner.recipe import Recipe
from limner.report.numbers import in_time
from limner.result import results, try_result, write_result
from limner.rundir import RunDir, read_json, write_json
from limner.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from limner.train.loop import Slot, SlotStep, Training
from limner.watch import Watch


def train_adapter(
    folder: RunDir, recipe: Recipe, checked: Checked, class_pictures: Path | None, watch: Watch
) -> RunDir:
    """Load, cache, train and save: the part that a new and a resumed run share."""
    with folder.timed("load"):
        family = load_base(recipe, watch)
    resolution_px = check_resolution(family, recipe.resolution)
    prior = (
        class_pictures_for(folder, recipe, family, class_pictures, resolution_px, watch)
        if recipe.prior.active
        else None
    )
    follow_objective(family, recipe)
    with watch.phase("prepare"), folder.timed("prepare"):
        prepared = prepare(checked, family, spec=recipe.pictures, cache=default_cache(), prior=prior,
                           prior_weight=recipe.prior.weight, batch=recipe.batch, progress=watch.progress)  # fmt: skip
        save_pictures(checked, recipe.pictures, folder.pictures, batch=recipe.batch)
        if checked.held_out:
            save_pictures(checked.held_out, recipe.pictures, folder.held_out)
    for note in prepared.notes:
        watch.say(note)
    plan = plan_run(recipe, checked, prepared.num_prior_examples, watch)
    adapter = recipe.adapter.attach(family, [SlotSettings(seed=recipe.seed, words=_words(recipe, checked))])
    rates = recipe.adapter.rates(recipe.learning_rate)
    slot = Slot("subject", prepared, recipe.seed, plan.steps, recipe.learning_rate, rates)
    if recipe.gradient_checkpointing:
        family.unet.enable_gradient_checkpointing()
    training = Training(family, adapter, [slot], objective=recipe.objective, optimizer=recipe.optimizer,
                        accumulate=recipe.accumulate, ema=recipe.ema, teacher=recipe.prior.teacher)  # fmt: skip
    for group in training.groups():
        watch.say(f"trains: {group.name}, {group.parameters:,} parameters in {group.tensors} tensors, "
                  f"learning rate {group.learning_rate:g}")  # fmt: skip
    _continue(folder, training, prepared)
    try_result(folder, recipe, family, adapter)
    with watch.phase("train"), folder.timed("train"):
        _steps(folder, recipe, family, training, watch)
    with training.evaluating():
        training.check_changes()
        _save_adapter(folder, recipe, family, adapter)
        _tell_changes(folder, adapter, watch)
    adapter.detach()
    _check_frozen(family)
    return folder


def _tell_changes(folder: RunDir, adapter: Attached, watch: Watch) -> None:
    """Say how far each group has come."""
    changes = adapter.changes()
    for group, change in changes.items():
        watch.say(f"changed: {group} by {change.norm:.3g} (L2 norm of the change of its weights)")
    folder.update_provenance(changes={group: asdict(change) for group, change in changes.items()})


def _check_frozen(family: Family) -> None:
    """Make sure that the base is bit for bit what it was before the training."""
    for part, module in (("unet", family.unet), ("vae", family.vae), ("text", family.text_encoders[0])):
        if fingerprint(module) != family.identity[part]:
            raise RuntimeError(f"the base's {part} has changed although it was frozen")


def plan_run(recipe: Recipe, checked: Checked, num_prior_examples: int, watch: Watch) -> Plan:
    """Derive the length of the run from the one that was given, and say it."""
    plan = plan_length(
        checked, batch=recipe.batch, accumulate=recipe.accumulate, steps=recipe.steps, epochs=recipe.epochs,
        exposures=recipe.exposures, num_prior_examples=num_prior_examples,
    )  # fmt: skip
    warmup = recipe.optimizer.warmup(plan.steps)
    every = recipe.checkpoint.every_steps
    pace = _known_paces().get(_pace_key(recipe))
    checkpoints = -(-plan.steps // every) if every else 1
    parts = [
        f"warm-up {warmup} steps" if warmup else "",
        f"{checkpoints} checkpoints" if checkpoints > 1 else "1 checkpoint, at the end",
        f"about {in_time(pace * plan.steps)}, by the last such run here" if pace else "time: after the first steps",
    ]
    for line in (plan.line, ", ".join(filter(None, parts)), *batch_notes(checked, recipe.batch)):
        watch.say(line)
    return plan


def _known_paces() -> dict[str, float]:
    """Return the seconds per step of the runs on this machine; what cannot be read is forgotten."""
    try:
        return read_json(default_cache() / "paces.json")
    except UserError:
        return {}


def _pace_key(recipe: Recipe) -> str:
    """Return what decides how long a step takes: base, device, size of the batch, and what learns."""
    sizes = (recipe.resolution, recipe.batch, recipe.accumulate, recipe.prior.active, recipe.gradient_checkpointing)
    return f"{recipe.base} {recipe.device} {recipe.precision} {sizes} {recipe.adapter.model_dump_json()}"


def _keep_pace(recipe: Recipe, seconds: list[float]) -> None:
    """Remember the median step of this run, for the plan of the next."""
    paces = {**_known_paces(), _pace_key(recipe): statistics.median(seconds)}
    write_json(default_cache() / "paces.json", paces)


def _continue(folder: RunDir, training: Training, prepared: Prepared) -> None:
    """Load the newest complete checkpoint, if there is one, after checking that the pictures are the same."""
    checkpoints = complete_checkpoints(folder.checkpoints)
    if not checkpoints:
        folder.update_provenance(data_fingerprint=prepared.fingerprint)
        write_json(folder.data_files, prepared.files)
        return
    if read_json(folder.provenance).get("data_fingerprint") != prepared.fingerprint:
        what = tell_changes(read_json(folder.data_files), prepared.files)
        raise UserError(f"{folder.path}: the data changed since the checkpoint ({what}), so the run cannot go on "
                        "exactly.", "Put it back, or start a new run.")  # fmt: skip
    load_checkpoint(training, checkpoints[-1])
    if training.index >= training.steps:
        raise UserError(f"{folder.path}: is already finished: {training.index} of {training.steps} steps.",
                        "Raise steps to continue: limner train --resume RUN steps=N")  # fmt: skip


def _steps(folder: RunDir, recipe: Recipe, family: Family, training: Training, watch: Watch) -> None:
    """Consume the training loop: log, checkpoint, preview, and stop at Ctrl-C after the step in hand."""
    every = recipe.checkpoint.every_steps
    seconds: list[float] = []
    with noted_signals() as stopped:
        for step in training:
            one = step.slots[0]
            seconds.append(step.seconds)
            folder.append_log("step", step=step.index, seconds=step.seconds, **_logged(one))
            watch.progress(step.index, training.steps, f"loss {one.loss:.3f}")
            last = step.index == training.steps
            if stopped and not last:
                _stop(folder, recipe, family, training)
            if last or (every and step.index % every == 0):
                save_checkpoint(training, folder.checkpoints, keep=recipe.checkpoint.keep)
            if recipe.preview.every_steps and step.index % recipe.preview.every_steps == 0:
                with training.evaluating():
                    preview(folder, recipe, family, step.index)
    _keep_pace(recipe, seconds)


def _stop(folder: RunDir, recipe: Recipe, family: Family, training: Training) -> None:
    """Save the checkpoint and the adapter of this step and leave."""
    path = save_checkpoint(training, folder.checkpoints, keep=recipe.checkpoint.keep)
    with training.evaluating():
        _save_adapter(folder, recipe, family, training.adapter)
    raise Interrupted(
        f"Stopped at step {training.index} of {training.steps}: {path} and {results(folder)[0]} are saved.",
        f"Continue with: limner train --resume {folder.path}",
    )


def _logged(step: SlotStep) -> dict[str, Any]:
    return {
        "loss": step.loss, "instance_loss": step.instance_loss, "prior_loss": step.prior_loss,
        "lr": dict(step.learning_rates), "grad_norm": step.grad_norm, "skipped": step.skipped,
    }  # fmt: skip


def _save_adapter(folder: RunDir, recipe: Recipe, family: Family, adapter: Attached) -> None:
    """Write the result, verified, and count what it trains."""
    files = write_result(folder, recipe, family, adapter)
    trained = adapter.trainable_parameters()
    in_base = sum(p.numel() for p in family.unet.parameters())
    folder.update_provenance(
        base={"name": recipe.base, "family": family.kind, "identity": family.identity},
        adapter={"kind": recipe.adapter.kind, "trainable_parameters": trained, "base_parameters": in_base,
                 "times_fewer": in_base / trained, "files": [file.name for file in files],
                 "file_bytes": sum(_bytes(file) for file in files if file != folder.single_file)},
    )  # fmt: skip


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())


def _words(recipe: Recipe, checked: Checked) -> dict[str, str]:
    """Return the subjects' tokens, each with the noun that describes it."""
    if not recipe.pictures.subjects:
        return {recipe.pictures.token: recipe.pictures.class_noun or "thing"}
    own = [spec_of(subject, recipe.pictures) for subject in dict.fromkeys(e.picture.subject for e in checked.examples)]
    return {spec.token: spec.class_noun or "thing" for spec in own}
