"""What watches the steps of a run: stops it when its numbers break, and warns once of what goes wrong slowly."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import torch

from limner.adapters.adapter import Change
from limner.errors import Guarded
from limner.train.slots import SlotStep
from limner.train.spill import Spilling, spilled_bytes

MAX_SKIPPED = 5
"""So many steps in a row with a loss or gradient that is not finite stop the run."""


def require_finite(step: SlotStep, index: int, *, skipped_in_a_row: int, dtype: torch.dtype) -> None:
    """Stop a run whose weights are not finite, or whose loss or gradient was not `MAX_SKIPPED` times in a row.

    Raises:
        Guarded: says where it stopped, with which pictures, timesteps, learning rate and precision.
    """
    if not math.isfinite(step.weight_norm):
        found = "the weights that learn are no longer finite"
    elif skipped_in_a_row >= MAX_SKIPPED:
        found = f"loss or gradient was not finite {skipped_in_a_row} times in a row"
    else:
        return
    precision = str(dtype).removeprefix("torch.")
    raise Guarded(
        f"Stopped at step {index}: {found} (pictures: {_listed(step.pictures)}; timesteps "
        f"{_listed(map(str, step.timesteps))}; learning rate {step.learning_rate:g}; {precision}).",
        _remedy(step.learning_rate, precision),
    )


def _remedy(learning_rate: float, precision: str) -> str:
    lower = "learning_rate=1e-4 or less" if learning_rate > 1e-4 else f"learning_rate={learning_rate / 10:.1g}"
    return f"Begin again with {lower}{'' if precision == 'float32' else ', or precision=float32'}."


def _listed(words: Iterable[str], most: int = 4) -> str:
    every = list(words)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


class Warner:
    """Warns once each of a loss that left its range, of an adapter that does not move, and of steps that crawl."""

    def __init__(self, changes: Callable[[], Mapping[str, Change]], device: torch.device) -> None:
        self._spike, self._dead, self._device = LossSpike(), DeadAdapter(changes), device
        self._spilling = Spilling(at_once=device.type == "cuda")

    def see(self, step: SlotStep, seconds: float) -> list[str]:
        """Return the warnings that this step gives rise to: mostly none."""
        slow = self._spilling.note(seconds, spilled_bytes(self._device))
        return [line for line in (self._spike.see(step), self._dead.see(step), slow) if line]


class LossSpike:
    """Warns when the loss has left its range: the median of the last steps is far above that of those before.

    The loss of one step is mostly the noise of its timestep, so no single one says anything.
    """

    recent, window, least, distance = 10, 100, 30, 3.0

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=self.window + self.recent)
        self._told = False

    def see(self, step: SlotStep) -> str | None:
        """Return the warning at the step that makes it certain."""
        if self._told or not math.isfinite(step.loss):
            return None
        self._losses.append(step.loss)
        before, last = list(self._losses)[: -self.recent], list(self._losses)[-self.recent :]
        if len(before) < self.least:
            return None
        usual, now = statistics.median(before), statistics.median(last)
        spread = 1.4826 * statistics.median(abs(loss - usual) for loss in before)  # that of a normal distribution
        if now <= usual + self.distance * spread:
            return None
        self._told = True
        return (
            f"the loss has left its range: {now:.3g} over the last {self.recent} steps, and it was {usual:.3g}. The "
            f"weights may be spoilt: look at a preview, or begin again with a learning rate below "
            f"{step.learning_rate:.2g}."
        )


class DeadAdapter:
    """Warns when nothing moves: a group is, after the first steps, what it was before them."""

    steps = 20

    def __init__(self, changes: Callable[[], Mapping[str, Change]]) -> None:
        self._changes, self._seen, self._has_gradient = changes, 0, False

    def see(self, step: SlotStep) -> str | None:
        """Return the warning at the last of the first `steps` steps that were not skipped."""
        self._has_gradient |= step.grad_norm > 0
        self._seen += not step.skipped
        if step.skipped or self._seen != self.steps:
            return None
        still = [group for group, change in self._changes().items() if change.norm == 0]
        if not still:
            return None
        why = f"(learning rate {step.learning_rates.get(still[0], 0):g})" if self._has_gradient else "(no gradient)"
        return (
            f"{' and '.join(still)} does not learn: after {self.steps} steps it is what it was {why}. "
            "Raise its learning rate, or choose other adapter.targets."
        )
