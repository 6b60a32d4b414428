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
from limner.prepare.ahead import fetched_ahead
from limner.prepare.check import Checked
from limner.prepare.encode import prepare
from limner.prepare.plan import Plan
from limner.prepare.prepared import Prepared
from limner.prepare.save import save_pictures
from limner.prepare.subjects import spec_of
from limner.ranks import Ranks
from limner.recipe import Recipe
from limner.result import try_result
from limner.resuming import continue_run
from limner.rundir import RunDir
from limner.starting import start_from
from limner.stepping import save_adapter, take_steps
from limner.train.checkpoint import complete_checkpoints
from limner.train.loop import Slot, Training
from limner.watch import Watch


def train_adapter(
    folder: RunDir,
    recipe: Recipe,
    checked: Checked,
    class_pictures: Path | None,
    watch: Watch,
    *,
    ranks: Ranks,
    accept_dataset_change: bool = False,
) -> RunDir:
    """Load, cache, train and save: the part that a new and a resumed run share, and all of its processes."""
    with folder.timed("load"):
        family = load_base(recipe, watch)
    prepared = _prepare(folder, recipe, family, checked, class_pictures, watch, ranks)
    plan = plan_run(recipe, checked, prepared.num_prior_examples, watch)
    with fetched_ahead(prepared, recipe.pictures.workers) as source:
        training = _training(folder, recipe, family, checked, Slot(
            "subject", source, recipe.seed, plan.steps, recipe.learning_rate, recipe.adapter.rates(recipe.learning_rate)
        ))  # fmt: skip
        training.share(ranks)
        for group in training.groups():
            watch.say(f"trains: {group.name}, {group.parameters:,} parameters in {group.tensors} tensors, "
                      f"learning rate {group.learning_rate:g}")  # fmt: skip
        continue_run(folder, recipe, training, prepared, watch, accept_dataset_change=accept_dataset_change)
        if folder.writes:
            try_result(folder, recipe, family, training.adapter)
        with watch.phase("train"), folder.timed("train"):
            take_steps(folder, recipe, family, training, plan, watch)
    if folder.writes:
        _finish(folder, recipe, family, training, plan, watch)
    ranks.wait()
    training.adapter.detach()
    _check_frozen(family)
    return folder


def _prepare(
    folder: RunDir,
    recipe: Recipe,
    family: Family,
    checked: Checked,
    class_pictures: Path | None,
    watch: Watch,
    ranks: Ranks,
) -> Prepared:
    """Have everything cached that does not change during training, and the pictures kept as the model sees them."""
    resolution_px = check_resolution(family, recipe.resolution)
    prior = None
    if recipe.prior.active:
        with ranks.first_then_others():
            prior = class_pictures_for(folder, recipe, family, class_pictures, resolution_px, watch)
    follow_objective(family, recipe)
    with watch.phase("prepare"), folder.timed("prepare"):
        prepared = prepare(checked, family, spec=recipe.pictures, cache=default_cache(), prior=prior,
                           batch=recipe.batch, share=(ranks.index, ranks.count), progress=watch.progress)  # fmt: skip
        if folder.writes:
            save_pictures(checked, recipe.pictures, folder.pictures, batch=recipe.batch)
            for kept, place in ((prior, folder.class_pictures), (checked.held_out, folder.held_out)):
                if kept:
                    save_pictures(kept, recipe.pictures, place)
        ranks.wait()
    for note in prepared.notes:
        watch.say(note)
    return prepared


def _training(folder: RunDir, recipe: Recipe, family: Family, checked: Checked, slot: Slot) -> Training:
    """Attach the adapter, with the weights that it is to begin with, and make ready to train it."""
    adapter = recipe.adapter.attach(family, [SlotSettings(seed=recipe.seed, words=_words(recipe, checked))])
    if recipe.init_from and not complete_checkpoints(folder.checkpoints):
        folder.update_provenance(init_from=start_from(recipe, adapter))
    if recipe.gradient_checkpointing:
        family.unet.enable_gradient_checkpointing()
    return Training(family, adapter, [slot], objective=recipe.objective, optimizer=recipe.optimizer,
                    accumulate=recipe.accumulate, ema=recipe.ema, teacher=recipe.prior.teacher)  # fmt: skip


def _finish(folder: RunDir, recipe: Recipe, family: Family, training: Training, plan: Plan, watch: Watch) -> None:
    """Save the result and say how far it has come, and what it took over all resumes."""
    with training.evaluating():
        training.check_changes()
        save_adapter(folder, recipe, family, training.adapter)
        _tell_changes(folder, training.adapter, watch)
    seconds = {row["step"]: row["seconds"] for row in folder.read_log("step")}
    folder.update_provenance(
        trained={"steps": plan.steps, "epochs": plan.epochs, "seconds": round(sum(seconds.values()), 3)}
    )


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
