"""The steps of a run as they are taken: logged, kept in checkpoints, previewed, and stopped tidily."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
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
from limner.train.loop import Step, Training
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
) -> Generator[None]:
    """Consume the training loop: log, checkpoint, preview, validate, and stop at Ctrl-C after the step in hand.

    Of several processes the first does all that; the others train, and stop where it stops. Yields after each step.

    Raises:
        Interrupted: Ctrl-C; the checkpoint and the adapter of this step are saved.
        Guarded: the numbers broke; the adapter of the last good checkpoint is saved.
    """
    with (
        closing(Attendant(folder, recipe, family, training, plan, watch, held_out=held_out)) as attendant,
        noted_signals() as stopped,
    ):
        try:
            is_over = attendant.begin()
            for step in () if is_over else training:
                attendant.tell(step)
                if training.ranks.any(bool(stopped)) and not attendant.is_last:
                    attendant.stop("Ctrl-C or SIGTERM")
                if attendant.see_to():
                    break
                yield
            attendant.finish()
        except Guarded as guarded:
            raise attendant.last_good(guarded) from None
        if stopped:  # at the last step: its checkpoint is written, and the run goes on from there
            raise KeyboardInterrupt
    attendant.keep_pace()


class Attendant:
    """Sees to one run between its steps: its log, checkpoints, previews and validations, and how it stops."""

    def __init__(
        self,
        folder: RunDir,
        recipe: Recipe,
        family: Family,
        training: Training,
        plan: Plan,
        watch: Watch,
        *,
        held_out: Prepared | None = None,
    ) -> None:
        self._folder, self._recipe, self._family, self._training = folder, recipe, family, training
        self._plan, self._held_out = plan, held_out
        self._seconds: list[float] = []
        self._spared = Spared(watch)
        self._telling = Telling(folder, recipe, training, watch)
        self._checkpoints = Checkpoints(folder, recipe, training, self._spared)
        self._validations = Validations(folder, recipe, family, training, self._telling, watch)

    @property
    def is_last(self) -> bool:
        """Tell whether the step in hand is the run's last."""
        return self._training.index == self._training.steps

    @property
    def is_due(self) -> bool:
        """Tell whether this step's weights are to be kept, drawn with or judged, so that they must be at work."""
        step, recipe = self._training.index, self._recipe
        every = (recipe.checkpoint.every_steps, recipe.preview.every_steps, recipe.validation.every_steps)
        return self.is_last or any(due(step, each) for each in every)

    def begin(self) -> bool:
        """Catch up with validations that are missing; return whether the run is over before it goes on."""
        return self._validations.catch_up()

    def tell(self, step: Step, *, slots: int = 1) -> None:
        """Log and show a step, of so many runs together."""
        self._seconds.append(step.seconds)
        with self._spared("line of the log"):
            self._telling.step(step, epoch=step.index * self._plan.epochs / self._plan.steps, slots=slots)
            self._folder.require_log()

    def see_to(self) -> bool:
        """Validate, keep and preview what is due at this step; return whether the run is to end here."""
        step = self._training.index
        is_over = self._validations.take()
        if self._folder.writes:
            self._checkpoints.heed()
            is_taken = self._validations.kept == step
            if self.is_last or is_over or is_taken or due(step, self._recipe.checkpoint.every_steps):
                self._checkpoints.begin(self._validate(), keep_step=self._validations.kept)
            if due(step, self._recipe.preview.every_steps):
                with self._spared("preview"):
                    self._preview()
        return is_over

    def finish(self) -> None:
        """Have the checkpoint in hand written."""
        self._checkpoints.finish()

    def close(self) -> None:
        """Finish, and close what was open."""
        self._checkpoints.close()
        self._telling.close()

    def keep_pace(self) -> None:
        """Remember how fast this run was, for the plan of the next."""
        if self._seconds and self._training.ranks.count == 1:
            with suppress(Unwritable):  # a pace that cannot be kept is not known the next time
                keep_pace(self._recipe, self._seconds)

    def _preview(self) -> None:
        """Draw a preview and tell where it is; one that fails is told, and never ends the run."""
        training = self._training
        try:
            with training.evaluating():
                made, wrong = preview(self._folder, self._recipe, self._family, training.index)
        except Unwritable:
            raise
        except Exception as error:  # whatever it is, a picture to look at is not worth the run
            what = f"{type(error).__name__}: {error}"
            made, wrong = None, f"preview at step {training.index} failed ({what}); training goes on"
        if not made and torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._telling.preview(training.index, made)
        if wrong:
            self._telling.warn(training.index, wrong)

    def last_good(self, guarded: Guarded) -> Guarded:
        """Save the adapter of the last checkpoint, if there is one, and say it where the guard says why it stopped."""
        folder, training = self._folder, self._training
        self._checkpoints.finish()
        folder.append_log("stopped", step=training.index, text=str(guarded))
        kept = complete_checkpoints(folder.checkpoints)
        if not kept:
            return Guarded(f"{guarded.message} No checkpoint was written before.", guarded.hint)
        load_checkpoint(training, kept[-1])
        if folder.writes:
            with training.evaluating(), suppress(Guarded):  # finite, and yet too large for the file's number format
                save_adapter(folder, self._recipe, self._family, training)
        # said in the same words by every process, so that it is printed once
        good = f"Last good checkpoint: step {training.index}, with its adapter in {folder.path}."
        return Guarded(f"{guarded.message} {good}", guarded.hint)

    def _validate(self) -> float | None:
        """Return the loss on the held-out pictures, and log it; None without them."""
        if self._held_out is None:
            return None
        loss = validation_loss(self._training, self._held_out, self._held_out.num_examples)
        self._folder.append_log("validation", step=self._training.index, validation_loss=loss)
        return loss if math.isfinite(loss) else None

    def stop(self, why: str) -> None:
        """Save the checkpoint and the adapter of this step, as far as the disk takes them, and leave.

        Raises:
            Interrupted: always.
        """
        folder, training = self._folder, self._training
        if folder.writes:
            self._checkpoints.begin(keep_step=self._validations.kept)
            self._checkpoints.finish()
            with self._spared("result"), training.evaluating():
                save_adapter(folder, self._recipe, self._family, training)
            folder.append_log("stopped", step=training.index, text=why)
        training.ranks.wait()
        is_of_this_step = read_json(folder.provenance).get("chosen", {}).get("step") == training.index
        own = results(folder)[:1] if is_of_this_step else ()
        saved = [str(path) for path in (checkpoint_of(folder.checkpoints, training.index), *own) if path.exists()]
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
