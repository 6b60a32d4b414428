"""The steps of a run as they are taken: logged, kept in checkpoints, previewed, and stopped tidily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.adapters.adapter import Attached
from limner.drawing import preview
from limner.errors import Interrupted
from limner.families.family import Family
from limner.interrupt import noted_signals
from limner.planning import keep_pace
from limner.prepare.plan import Plan
from limner.recipe import Recipe
from limner.result import results, write_result
from limner.resuming import made_with
from limner.rundir import RunDir
from limner.train.checkpoint import complete_checkpoints, save_checkpoint
from limner.train.loop import SlotStep, Training
from limner.watch import Watch


def take_steps(folder: RunDir, recipe: Recipe, family: Family, training: Training, plan: Plan, watch: Watch) -> None:
    """Consume the training loop: log, checkpoint, preview, and stop at Ctrl-C after the step in hand.

    Of several processes the first does all that; the others train, and stop where it stops.
    """
    every = recipe.checkpoint.every_steps
    seconds: list[float] = []
    with noted_signals() as stopped:
        for step in training:
            one = step.slots[0]
            seconds.append(step.seconds)
            epoch = round(step.index * plan.epochs / plan.steps, 4)
            folder.append_log("step", step=step.index, epoch=epoch, seconds=step.seconds, **_logged(one))
            watch.progress(step.index, training.steps, f"loss {one.loss:.3f}")
            last = step.index == training.steps
            if training.ranks.any(bool(stopped)) and not last:
                _stop(folder, recipe, family, training)
            if not folder.writes:
                continue
            if last or (every and step.index % every == 0):
                _save(folder, recipe, training)
            if recipe.preview.every_steps and step.index % recipe.preview.every_steps == 0:
                with training.evaluating():
                    preview(folder, recipe, family, step.index)
    if training.ranks.count == 1:
        keep_pace(recipe, seconds)


def _save(folder: RunDir, recipe: Recipe, training: Training) -> Path:
    about = made_with(recipe, training)
    return save_checkpoint(training, folder.checkpoints, keep=recipe.checkpoint.keep, made_with=about)


def _stop(folder: RunDir, recipe: Recipe, family: Family, training: Training) -> None:
    """Save the checkpoint and the adapter of this step and leave."""
    if folder.writes:
        _save(folder, recipe, training)
        with training.evaluating():
            save_adapter(folder, recipe, family, training.adapter)
    training.ranks.wait()
    raise Interrupted(
        f"Stopped at step {training.index} of {training.steps}: {complete_checkpoints(folder.checkpoints)[-1]} and "
        f"{results(folder)[0]} are saved.",
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
