"""The steps of a run as they are taken: logged, kept in checkpoints, previewed, and stopped tidily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.adapters.adapter import Attached
from limner.drawing import preview
from limner.errors import Interrupted, UserError
from limner.families.family import Family
from limner.interrupt import noted_signals
from limner.planning import keep_pace
from limner.prepare.memory import tell_changes
from limner.prepare.prepared import Prepared
from limner.recipe import Recipe
from limner.result import results, write_result
from limner.rundir import RunDir, read_json, write_json
from limner.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from limner.train.loop import SlotStep, Training
from limner.watch import Watch


def continue_run(folder: RunDir, training: Training, prepared: Prepared) -> None:
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


def take_steps(folder: RunDir, recipe: Recipe, family: Family, training: Training, watch: Watch) -> None:
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
    keep_pace(recipe, seconds)


def _stop(folder: RunDir, recipe: Recipe, family: Family, training: Training) -> None:
    """Save the checkpoint and the adapter of this step and leave."""
    path = save_checkpoint(training, folder.checkpoints, keep=recipe.checkpoint.keep)
    with training.evaluating():
        save_adapter(folder, recipe, family, training.adapter)
    raise Interrupted(
        f"Stopped at step {training.index} of {training.steps}: {path} and {results(folder)[0]} are saved.",
        f"Continue with: limner train --resume {folder.path}",
    )


def _logged(step: SlotStep) -> dict[str, Any]:
    return {
        "loss": step.loss, "instance_loss": step.instance_loss, "prior_loss": step.prior_loss,
        "lr": dict(step.learning_rates), "grad_norm": step.grad_norm, "skipped": step.skipped,
    }  # fmt: skip


def save_adapter(folder: RunDir, recipe: Recipe, family: Family, adapter: Attached) -> None:
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
