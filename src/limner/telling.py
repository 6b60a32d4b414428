"""What a run tells of each step: to its log, to who watches, to trackers, and warnings of what goes wrong."""

from __future__ import annotations

import math
from pathlib import Path

from limner.machine import used_gib
from limner.recipe import Recipe, settings_of
from limner.rundir import RunDir
from limner.train.guards import Warner
from limner.train.loop import SlotStep, Step, Training
from limner.train.trackers import Trackers
from limner.watch import Watch

KEEPS = 0.95
"""Share of the smoothed values that each step leaves."""


class Telling:
    """Tells the steps of one training."""

    def __init__(self, folder: RunDir, recipe: Recipe, training: Training, watch: Watch) -> None:
        self._folder, self._steps, self._watch = folder, training.steps, watch
        self._warner = Warner(training.adapter.changes, training.family.device)
        names = recipe.tracking if folder.writes else ()
        self._trackers = Trackers(names, folder.path, settings_of(recipe), watch.say)
        self._preview: Path | None = None
        self._loss = self._seconds = math.nan

    def step(self, step: Step, *, epoch: float, slots: int = 1) -> None:
        """Tell a step; `epoch` counts the passes over the pictures, `slots` the runs whose step it was together."""
        one = step.slots[0]
        numbers, rates, memory_gib = _numbers(one), dict(one.learning_rates), used_gib()
        self._folder.append_log(
            "step", step=step.index, epoch=round(epoch, 4), seconds=step.seconds, memory_gib=memory_gib, **numbers,
            lr=rates, skipped=one.skipped, timesteps=one.timesteps,
            **({"slots": slots} if slots > 1 else {}),
        )  # fmt: skip
        self._trackers.log(numbers | {f"learning_rate/{group}": rate for group, rate in rates.items()}, step.index)
        for line in self._warner.see(one, step.seconds):
            self.warn(step.index, line)
        self._watch.progress(step.index, self._steps, self._note(one, slots * step.seconds, memory_gib))

    def warn(self, index: int, text: str) -> None:
        """Tell what looks wrong at a step; the run goes on."""
        self._folder.append_log("warning", step=index, text=text)
        self._watch.say(f"warning: {text}")

    def preview(self, index: int, made: Path | None) -> None:
        """Tell where a preview is, or None for one that could not be drawn."""
        self._folder.append_log("preview", step=index, path=str(made.relative_to(self._folder.path)) if made else None)
        self._preview = made
        self._trackers.log_pictures("preview", sorted(made.glob("*.png")) if made else [], index)

    def close(self) -> None:
        """Close the trackers."""
        self._trackers.close()

    def _note(self, step: SlotStep, seconds: float, memory_gib: float) -> str:
        """Return what to show under the bar: loss (smoothed and raw), pace, rate, memory; then the last preview."""
        if math.isfinite(step.loss):
            self._loss = _smooth(self._loss, step.loss)
        self._seconds = _smooth(self._seconds, seconds)
        pace = f"{1 / self._seconds:.2g} steps/s" if self._seconds < 1 else f"{self._seconds:.2g} s/step"
        line = f"loss {self._loss:.3f} (now {step.loss:.3f}), {pace}, lr {step.learning_rate:.2g}, {memory_gib:.1f} GiB"
        return f"{line}\npreview: {self._preview}" if self._preview else line


def _smooth(old: float, new: float) -> float:
    return new if math.isnan(old) else KEEPS * old + (1 - KEEPS) * new


def _numbers(step: SlotStep) -> dict[str, float | None]:
    """Return what is measured of a step; what is not finite is None, because JSON knows no such number."""
    names = ("loss", "instance_loss", "prior_loss", "grad_norm", "weight_norm")
    found: dict[str, float | None] = {name: getattr(step, name) for name in names}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}
