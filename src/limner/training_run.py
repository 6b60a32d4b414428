"""One run's training, from checked pictures to the verified result: what a new and a resumed run share."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from limner.adapters.adapter import Attached, SlotSettings
from limner.drawing import class_pictures as class_pictures_for
from limner.drawing import follow_objective, load_base
from limner.families.family import Family
from limner.families.load import fingerprints
from limner.generate.draw import check_resolution
from limner.pictures.cache import default_cache
from limner.planning import plan_run
from limner.prepare.check import Checked
from limner.prepare.encode import prepare
from limner.prepare.save import save_pictures
from limner.prepare.subjects import spec_of
from limner.recipe import Recipe
from limner.result import try_result
from limner.rundir import RunDir
from limner.stepping import continue_run, save_adapter, take_steps
from limner.train.loop import Slot, Training
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
    continue_run(folder, training, prepared)
    try_result(folder, recipe, family, adapter)
    with watch.phase("train"), folder.timed("train"):
        take_steps(folder, recipe, family, training, watch)
    with training.evaluating():
        training.check_changes()
        save_adapter(folder, recipe, family, adapter)
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
    for part, now in fingerprints(family).items():
        if now != family.identity[part]:
            raise RuntimeError(f"the base's {part} has changed although it was frozen")


def _words(recipe: Recipe, checked: Checked) -> dict[str, str]:
    """Return the subjects' tokens, each with the noun that describes it."""
    if not recipe.pictures.subjects:
        return {recipe.pictures.token: recipe.pictures.class_noun or "thing"}
    own = [spec_of(subject, recipe.pictures) for subject in dict.fromkeys(e.picture.subject for e in checked.examples)]
    return {spec.token: spec.class_noun or "thing" for spec in own}
