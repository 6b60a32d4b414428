"""One run's training, from checked pictures to the verified result: what a new and a resumed run share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limner.adapters.adapter import Attached
from limner.drawing import class_pictures as class_pictures_for
from limner.drawing import follow_objective, load_base, preview
from limner.errors import Unwritable
from limner.families.family import Family
from limner.families.load import complete, fingerprints
from limner.files import Need, default_cache, passing, require_room
from limner.fitting import is_plenty
from limner.generate.draw import check_resolution
from limner.interrupt import stoppable
from limner.learning import make_training, unneeded
from limner.machine import place, require_gpu, return_freed_memory
from limner.planning import plan_run
from limner.prepare.ahead import fetched_ahead
from limner.prepare.check import Checked
from limner.prepare.encode import Portion, prepare
from limner.prepare.plan import Plan
from limner.prepare.prepared import Prepared
from limner.prepare.save import save_pictures
from limner.ranks import Ranks
from limner.recipe import Recipe, changed
from limner.refining import load_partner
from limner.result import try_result
from limner.resuming import continue_run
from limner.rundir import RunDir
from limner.starting import start_from
from limner.stepping import choose_checkpoint, save_adapter, take_steps, trained_seconds
from limner.train.checkpoint import complete_checkpoints, newest_checkpoint
from limner.train.loop import Training
from limner.train.probe import probe
from limner.underlying import attach_underlying, keep_underlying
from limner.watch import Watch

AS_THEY_ARE = {"flip": False, "caption_dropout": 0.0, "templates": (), "shuffle_tags": 0, "masks": False}
"""How held-out pictures are prepared: each is seen once, whole, with its one caption."""


@dataclass(frozen=True)
class Ready:
    """A run whose training is made: new, or as its newest checkpoint left it."""

    folder: RunDir
    recipe: Recipe
    family: Family
    training: Training
    plan: Plan
    prepared: Prepared
    held_out: Prepared | None

    @property
    def is_done(self) -> bool:
        """Tell whether all steps are taken, and only the result is missing."""
        return self.training.index >= self.training.steps


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
        family = load_for_training(recipe, watch, class_pictures, alone=True)
        loaded = dict(family.identity)
        beneath = _attach_beneath(folder, recipe, family, watch, ranks)
    with made_ready(folder, recipe, family, checked, class_pictures, watch, ranks=ranks,
                    accept_dataset_change=accept_dataset_change) as run:  # fmt: skip
        loaded = family.identity | loaded  # and what has been read since
        if not run.is_done:
            is_early = run.prepared.encode_rest is not None
            if run.training.index == 0 and not (is_early or (ranks.count == 1 and is_plenty(recipe, checked))):
                with watch.phase("probe"), folder.timed("probe"):
                    _probe(run)
            _train(run, watch)
    finish(run, watch)
    ranks.wait()
    for adapter in (run.training.adapter, *reversed(beneath)):
        adapter.detach()
    check_frozen(family, loaded)
    return folder


def _train(run: Ready, watch: Watch) -> None:
    """Take the steps; pictures that the first one does not need are encoded after it."""
    folder, prepared = run.folder, run.prepared
    steps = take_steps(folder, run.recipe, run.family, run.training, run.plan, watch, held_out=run.held_out)
    with closing(steps):
        if prepared.encode_rest and run.training.index == 0:
            with watch.phase("train"), folder.timed("train"):
                next(steps, None)
        if prepared.encode_rest:
            with watch.phase("prepare"), folder.timed("prepare"), stoppable():
                return_freed_memory()  # the step's: the encoding's lies beside the UNet now
                with run.family.whole("vae"):
                    notes = prepared.encode_rest(watch.progress)
                for note in notes:
                    watch.say(note)
        with watch.phase("train"), folder.timed("train"):
            deque(steps, maxlen=0)


def load_for_training(recipe: Recipe, watch: Watch, class_pictures: Path | None, *, alone: bool = False) -> Family:
    """Load the recipe's base, and what draws together with it where something is drawn before or while it trains.

    Where nothing else is to train on it, and nothing is drawn before, the UNet is left until pictures are encoded.
    """
    require_gpu(place(recipe.device, recipe.precision), recipe.offload)
    unread = ("unet",) if alone and recipe.encodes_first(class_pictures is not None) else ()
    family = load_base(recipe, watch, storage=recipe.base_storage, offload=recipe.offload, unread=unread)
    if recipe.generation.begun_by and (recipe.draws_while_training or (recipe.prior.active and not class_pictures)):
        load_partner(family, recipe, watch)
    return family


@contextmanager
def made_ready(
    folder: RunDir,
    recipe: Recipe,
    family: Family,
    checked: Checked,
    class_pictures: Path | None,
    watch: Watch,
    *,
    ranks: Ranks,
    accept_dataset_change: bool = False,
) -> Iterator[Ready]:
    """Cache, attach what learns, and bring it to where the run is; within this block its batches are fetched."""
    prepared = _prepare(folder, recipe, family, checked, class_pictures, watch, ranks)
    if not recipe.draws_while_training:
        family.begun_by = None  # it has begun the class pictures, and is in the way of the training
    held_out = _held_out(folder, recipe, family, checked)
    if family.unread:
        with watch.phase("load"), folder.timed("load"):
            family.put_aside(*unneeded(recipe, family))
            complete(family)
    plan = plan_run(recipe, checked, prepared.num_prior_examples, watch)
    begin = recipe.accumulate if prepared.encode_rest else 0
    with fetched_ahead(prepared, recipe.pictures.workers, begin=begin) as source:
        training = make_training(family, recipe, checked, source, plan.steps)
        run = Ready(folder, recipe, family, training, plan, prepared, held_out)
        try:
            _bring_up(run, watch, ranks, accept_dataset_change=accept_dataset_change)
        except BaseException:
            training.adapter.detach()
            raise
        yield run


def _bring_up(run: Ready, watch: Watch, ranks: Ranks, *, accept_dataset_change: bool) -> None:
    """Bring a training that has just been made to where the run is, and make sure that its result can be had."""
    folder, recipe, training = run.folder, run.recipe, run.training
    _start(folder, recipe, training)
    training.share(ranks)
    for group in training.groups():
        watch.say(f"trains: {group.name}, {group.parameters:,} parameters in {group.tensors} tensors, "
                  f"learning rate {group.learning_rate:g}")  # fmt: skip
    continue_run(folder, recipe, training, run.prepared, watch, accept_dataset_change=accept_dataset_change)
    if folder.writes:
        result_bytes = try_result(folder, recipe, run.family, training.adapter)
        if not run.is_done:
            _require_room(folder, recipe, training, result_bytes)


def _attach_beneath(folder: RunDir, recipe: Recipe, family: Family, watch: Watch, ranks: Ranks) -> list[Attached]:
    """Attach the subject beneath a few-step adapter, from the run's own copy of it; nothing in any other run."""
    if recipe.distill.adapter is None:
        return []
    with ranks.first_then_others():
        keep_underlying(folder, recipe)
    watch.say(f"stays attached to teacher and student: {recipe.distill.adapter}")
    return attach_underlying(family, folder.subject)


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
    portion = Portion(ranks.index, ranks.count)
    if family.unread and ranks.count == 1 and is_plenty(recipe, checked):
        portion = Portion(batches=recipe.accumulate, seed=recipe.seed)
    with watch.phase("prepare"), folder.timed("prepare"):
        prepared = prepare(checked, family, spec=recipe.pictures, cache=default_cache(), prior=prior,
                           batch=recipe.batch, portion=portion, progress=watch.progress)  # fmt: skip
        if folder.writes:
            save_pictures(checked, recipe.pictures, folder.pictures, batch=recipe.batch)
            for kept, place in ((prior, folder.class_pictures), (checked.held_out, folder.held_out)):
                if kept:
                    save_pictures(kept, recipe.pictures, place)
        ranks.wait()
    for note in prepared.notes:
        watch.say(note)
    return prepared


def _held_out(folder: RunDir, recipe: Recipe, family: Family, checked: Checked) -> Prepared | None:
    """Have the pictures cached that checkpoints are judged on; None where they are not."""
    if not (folder.writes and recipe.checkpoint.choose == "loss" and checked.held_out):
        return None
    plain = recipe.pictures.model_copy(update=AS_THEY_ARE)
    return prepare(checked.held_out, family, spec=plain, cache=default_cache(), batch=1)


def _start(folder: RunDir, recipe: Recipe, training: Training) -> None:
    """Set the weights that a new run is to begin with, where the recipe names some."""
    if recipe.init_from and newest_checkpoint(folder.checkpoints, say=lambda _: None) is None:
        folder.update_provenance(init_from=start_from(recipe, training.adapter))
        training.forget()


def finish(run: Ready, watch: Watch) -> None:
    """Save the result and say how far it has come, and what it took over all resumes; the first process does it."""
    folder, training = run.folder, run.training
    if not folder.writes:
        return
    steps = training.index
    chosen = choose_checkpoint(folder, run.recipe, training, watch)
    with training.evaluating():
        training.check_changes()
        _save_result(folder, run.recipe, run.family, training, chosen)
        _tell_changes(folder, training.adapter, watch)
    epochs = run.plan.epochs * steps / run.plan.steps
    folder.update_provenance(trained={"steps": steps, "epochs": epochs, "seconds": trained_seconds(folder, steps)})


def _require_room(folder: RunDir, recipe: Recipe, training: Training, result_bytes: int) -> None:
    """Refuse to begin when the disk has no room for all checkpoints that are there at once, and the result."""
    own = recipe.checkpoint
    coming = -(-(training.steps - training.index) // own.every_steps) if own.every_steps else 1
    at_once = min(own.keep + 1 + (own.choose != "last"), coming)
    state_bytes = sum(update.state_bytes() for update in training.updates)
    needs = [Need(folder.path, at_once * state_bytes, "checkpoints"), Need(folder.path, result_bytes, "result")]
    less = {"checkpoint.keep=1": own.keep > 1, "checkpoint.every_steps=0": own.every_steps > 0}
    ways = [f"set {way}" for way, is_left in less.items() if is_left] or ["name another folder with --run"]
    require_room(needs, str(folder.path), f"Free some, or {' or '.join(ways)}.")


def _save_result(folder: RunDir, recipe: Recipe, family: Family, training: Training, chosen: Mapping[str, Any]) -> None:
    """Save what the run is for; if the disk does not take it, say how it is had without training again."""
    try:
        save_adapter(folder, recipe, family, training, chosen)
    except Unwritable as error:
        again = f"Make room and write it, without training again: limner train --resume {folder.path}"
        if not complete_checkpoints(folder.checkpoints):
            again = "Make room: there is no checkpoint either."
        raise Unwritable(error.message, again) from error


def _probe(run: Ready) -> None:
    """Take the largest step, and draw as between steps where that is to be, before it counts: memory runs out now.

    Nothing of it stays.
    """
    probe(run.training, run.folder.path / f".probe-{run.training.ranks.index}", largest_step(run))
    try_drawing(run)


def largest_step(run: Ready) -> int:
    """Return the number (from 0) of the step that needs most memory."""
    training = run.training
    return run.prepared.largest_batch(training.steps * training.accumulate, seed=run.recipe.seed) // training.accumulate


def try_drawing(run: Ready) -> None:
    """Draw as between steps, in few steps, where the run is to do so; nothing of it stays."""
    recipe, family = run.recipe, run.family
    if recipe.draws_while_training and run.folder.writes:
        with passing(run.folder.path / ".probe") as trial:
            few: dict[str, Any] = {"generation.num_inference_steps": 1}
            if family.begun_by:  # one step of each
                few = {"generation.num_inference_steps": 2, "generation.handover": 0.5}
            if recipe.validation.every_steps:
                few["preview.images"] = max(recipe.preview.images, recipe.generation.batch)
                few["preview.decoder"] = ""  # a validation is decoded by the VAE, which needs more
            preview(RunDir(trial), changed(recipe, few), family, 0)


def _tell_changes(folder: RunDir, adapter: Attached, watch: Watch) -> None:
    """Say how far each group has come."""
    changes = adapter.changes()
    for group, change in changes.items():
        watch.say(f"changed: {group} by {change.norm:.3g} (L2 norm of the change of its weights)")
    folder.update_provenance(changes={group: asdict(change) for group, change in changes.items()})


def check_frozen(family: Family, loaded: Mapping[str, str]) -> None:
    """Make sure that the base is bit for bit what it was when it was loaded, by its identity then.

    A part that was put aside is read from the files whenever it is needed, and is not here to be changed.
    """
    for part, now in fingerprints(family).items():
        if now != loaded[part]:
            raise RuntimeError(f"the base's {part} has changed although it was frozen")
