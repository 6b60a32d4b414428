"""The steps of a run as they are taken: logged, kept in checkpoints, previewed, and stopped tidily."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import torch

from limner.drawing import preview
from limner.errors import Guarded, Interrupted, Unwritable, UserError
from limner.families.family import Family
from limner.files import bytes_of
from limner.interrupt import noted_signals
from limner.planning import keep_pace
from limner.prepare.plan import Plan
from limner.prepare.prepared import Prepared
from limner.recipe import Recipe
from limner.result import results, write_result
from limner.resuming import made_with
from limner.rundir import RunDir, read_json
from limner.telling import Telling
from limner.train.checkpoint import (
    BESIDE_BYTES,
    State,
    best_checkpoint,
    checkpoint_of,
    complete_checkpoints,
    load_checkpoint,
    take_state,
    write_checkpoint,
)
from limner.train.loop import Training
from limner.train.validation import validation_loss
from limner.validating import Validations, due, read_course
from limner.watch import Watch


class Spared:
    """Files that a run can do without: one that the disk does not take is said once, and the training goes on."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._missing: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Go on if this block cannot write `what`; say so, unless that was said and has not been mended since."""
        try:
            yield
            self._missing.discard(what)
        except Unwritable as error:
            if what not in self._missing:
                self._watch.say(f"{error} The training goes on, and the next {what} is tried again.")
            self._missing.add(what)


class Checkpoints:
    """Writes a run's checkpoints one after the other; what goes wrong with one is said, and the training goes on.

    Of a small state a copy is written, on a thread of its own, while the training goes on.
    """

    def __init__(self, folder: RunDir, recipe: Recipe, training: Training, spared: Spared) -> None:
        self._folder, self._recipe, self._training, self._spared = folder, recipe, training, spared
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._coming: Future[None] | None = None

    def begin(self, validation_loss: float | None = None, *, keep_step: int | None = None) -> None:
        """Begin to write the state of this step, and the log up to it; the checkpoint of `keep_step` stays."""
        self.finish()
        state, about = take_state(self._training), made_with(self._recipe, self._training)
        beside = state.bytes <= BESIDE_BYTES
        state = state.copied() if beside else state
        self._coming = self._thread.submit(self._write, state, about, validation_loss, keep_step)
        if not beside:
            self.finish()

    def heed(self) -> None:
        """Say how the checkpoint in hand went wrong, if it has by now."""
        if self._coming and self._coming.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint in hand, and say what goes wrong with it."""
        coming, self._coming = self._coming, None
        if coming:
            with self._spared("checkpoint"):
                coming.result()

    def close(self) -> None:
        """Finish, and end the thread."""
        self.finish()
        self._thread.shutdown()

    def _write(
        self, state: State, about: Mapping[str, Any], validation_loss: float | None, keep_step: int | None
    ) -> None:
        own = self._recipe.checkpoint
        self._folder.sync_log()
        write_checkpoint(state, self._folder.checkpoints, keep=own.keep, made_with=about,
                         validation_loss=validation_loss, keep_best=own.choose == "loss",
                         keep_step=keep_step)  # fmt: skip


def take_steps(
    folder: RunDir,
    recipe: Recipe,
    family: Family,
    training: Training,
    plan: Plan,
    watch: Watch,
    *,
    held_out: Prepared | None = None,
) -> None:
    """Consume the training loop: log, checkpoint, preview, validate, and stop at Ctrl-C after the step in hand.

    Of several processes the first does all that; the others train, and stop where it stops.

    Raises:
        Interrupted: Ctrl-C; the checkpoint and the adapter of this step are saved.
        Guarded: the numbers broke; the adapter of the last good checkpoint is saved.
    """
    seconds: list[float] = []
    spared = Spared(watch)
    with (
        closing(Telling(folder, recipe, training, watch)) as telling,
        closing(Checkpoints(folder, recipe, training, spared)) as checkpoints,
        noted_signals() as stopped,
    ):
        validations = Validations(folder, recipe, family, training, telling, watch)
        try:
            is_over = validations.catch_up()
            for step in () if is_over else training:
                seconds.append(step.seconds)
                with spared("line of the log"):
                    telling.step(step, epoch=step.index * plan.epochs / plan.steps)
                    folder.require_log()
                last = step.index == training.steps
                if training.ranks.any(bool(stopped)) and not last:
                    _stop(folder, recipe, family, training, spared, checkpoints, validations)
                is_over = validations.take()
                if folder.writes:
                    checkpoints.heed()
                    is_taken = validations.kept == step.index
                    if last or is_over or is_taken or due(step.index, recipe.checkpoint.every_steps):
                        loss = _validate(folder, training, held_out)
                        checkpoints.begin(loss, keep_step=validations.kept)
                    if due(step.index, recipe.preview.every_steps):
                        with spared("preview"):
                            _preview(folder, recipe, family, training, telling)
                if is_over:
                    break
            checkpoints.finish()
        except Guarded as guarded:
            checkpoints.finish()
            raise _last_good(guarded, folder, recipe, family, training) from None
        if stopped:  # at the last step: its checkpoint is written, and the run goes on from there
            raise KeyboardInterrupt
    if seconds and training.ranks.count == 1:
        with suppress(Unwritable):  # a pace that cannot be kept is not known the next time
            keep_pace(recipe, seconds)


def _preview(folder: RunDir, recipe: Recipe, family: Family, training: Training, telling: Telling) -> None:
    """Draw a preview and tell where it is; one that fails is told, and never ends the run."""
    try:
        with training.evaluating():
            made, wrong = preview(folder, recipe, family, training.index)
    except Unwritable:
        raise
    except Exception as error:  # whatever it is, a picture to look at is not worth the run
        what = f"{type(error).__name__}: {error}"
        made, wrong = None, f"preview at step {training.index} failed ({what}); training goes on"
    if not made and torch.cuda.is_available():
        torch.cuda.empty_cache()
    telling.preview(training.index, made)
    if wrong:
        telling.warn(training.index, wrong)


def _last_good(guarded: Guarded, folder: RunDir, recipe: Recipe, family: Family, training: Training) -> Guarded:
    """Save the adapter of the last checkpoint, if there is one, and say it where the guard says why it stopped."""
    folder.append_log("stopped", step=training.index, text=str(guarded))
    kept = complete_checkpoints(folder.checkpoints)
    if not kept:
        return Guarded(f"{guarded.message} No checkpoint was written before.", guarded.hint)
    load_checkpoint(training, kept[-1])
    if folder.writes:
        with training.evaluating(), suppress(Guarded):  # finite, and yet too large for the number format of the file
            save_adapter(folder, recipe, family, training)
    # said in the same words by every process, so that it is printed once
    good = f"Last good checkpoint: step {training.index}, with its adapter in {folder.path}."
    return Guarded(f"{guarded.message} {good}", guarded.hint)


def _validate(folder: RunDir, training: Training, held_out: Prepared | None) -> float | None:
    """Return the loss on the held-out pictures, and log it; None without them."""
    if held_out is None:
        return None
    loss = validation_loss(training, held_out, held_out.num_examples)
    folder.append_log("validation", step=training.index, validation_loss=loss)
    return loss if math.isfinite(loss) else None


def _stop(
    folder: RunDir,
    recipe: Recipe,
    family: Family,
    training: Training,
    spared: Spared,
    checkpoints: Checkpoints,
    validations: Validations,
) -> None:
    """Save the checkpoint and the adapter of this step, as far as the disk takes them, and leave."""
    if folder.writes:
        checkpoints.begin(keep_step=validations.kept)
        checkpoints.finish()
        with spared("result"), training.evaluating():
            save_adapter(folder, recipe, family, training)
        folder.append_log("stopped", step=training.index, text="Ctrl-C or SIGTERM")
    training.ranks.wait()
    is_of_this_step = read_json(folder.provenance).get("chosen", {}).get("step") == training.index
    files = (checkpoint_of(folder.checkpoints, training.index), *(results(folder)[:1] if is_of_this_step else ()))
    saved = [str(path) for path in files if path.exists()]
    said = f"{' and '.join(saved) or 'nothing'} {'are' if len(saved) > 1 else 'is'} saved."
    raise Interrupted(
        f"Stopped at step {training.index} of {training.steps}: {said}",
        f"Continue with: limner train --resume {folder.path}",
    )


def choose_checkpoint(folder: RunDir, recipe: Recipe, training: Training, watch: Watch) -> dict[str, Any]:
    """Bring the training to the weights that the result is made of, say which, and return what provenance tells of it.

    They are those of the last step, or of the one that `checkpoint.choose` finds.
    """
    how, last, course = recipe.checkpoint.choose, training.index, read_course(folder)
    chosen: dict[str, Any] = {"choose": how, "step": last, "trained_steps": last, "is_early": last < training.steps}
    if how == "last":
        if course and course.knee and course.knee.is_conclusive and course.knee.step < last:
            watch.say(f"result: step {last}, the last one. By the evidence: {course.knee.words}")
    elif how == "loss":
        best = best_checkpoint(folder.checkpoints)
        if best is None:
            raise _nothing_to_choose(folder, "no checkpoint has a validation loss")
        load_checkpoint(training, best[0])
        watch.say(f"result: {best[0].name}, whose validation loss of {best[1]:.4g} is the lowest of all.")
        chosen |= {"step": training.index, "validation_loss": best[1]}
    else:
        if course is None or course.knee is None:
            raise _nothing_to_choose(folder, "no step was judged (validation.every_steps)")
        path = checkpoint_of(folder.checkpoints, course.knee.step)
        if course.knee.is_conclusive and course.knee.step < last:
            if path not in complete_checkpoints(folder.checkpoints):
                raise _nothing_to_choose(
                    folder, f"the checkpoint of step {course.knee.step}, the best one, is not there"
                )
            load_checkpoint(training, path)
        watch.say(f"result: step {training.index}. {course.knee.words}")
        chosen |= {"step": training.index, "why": course.knee.words}
    return {**chosen, "seconds": trained_seconds(folder, chosen["step"])}


def trained_seconds(folder: RunDir, step: int) -> float:
    """Return how long the run trained up to a step; of steps that were taken twice the last time counts."""
    seconds = {row["step"]: row["seconds"] for row in folder.read_log("step") if row["step"] <= step}
    return round(sum(seconds.values()), 3)


def _nothing_to_choose(folder: RunDir, found: str) -> UserError:
    return UserError(
        f"{folder.path}: {found}.",
        f"Take the last step's weights: limner train --resume {folder.path} checkpoint.choose=last",
    )


def save_adapter(
    folder: RunDir, recipe: Recipe, family: Family, training: Training, chosen: Mapping[str, Any] | None = None
) -> None:
    """Write the result, verified, and count what it trains; `chosen` says which step's it is, else the one in hand."""
    files = write_result(folder, recipe, family, training.adapter)
    trained = training.adapter.trainable_parameters()
    in_base = sum(p.numel() for p in family.unet.parameters())
    at = {"choose": "last", "step": training.index, "trained_steps": training.index}
    folder.update_provenance(
        base={"name": recipe.base, "family": family.kind, "identity": family.identity},
        adapter={"kind": recipe.adapter.kind, "trainable_parameters": trained, "base_parameters": in_base,
                 "times_fewer": in_base / trained, "files": [file.name for file in files],
                 "file_bytes": sum(bytes_of(file) for file in files if file != folder.single_file)},
        chosen=chosen or at,
    )  # fmt: skip
