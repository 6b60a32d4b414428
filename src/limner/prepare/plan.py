"""The length of a run: one of steps, epochs or exposures is given, the rest follows from the real batches."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from limner.errors import UserError
from limner.prepare.check import Checked


@dataclass(frozen=True)
class Plan:
    """How long a run is, in every unit. A step is one optimizer update."""

    steps: int
    epochs: float
    exposures: float
    """How often each picture of the subject is seen, on average."""
    num_examples: int
    num_prior_examples: int
    batch: int
    """Instance rows of one step; as many class rows are added when there is a prior."""

    @property
    def line(self) -> str:
        """Return the plan as one line to print."""
        pictures = "1 picture" if self.num_examples == 1 else f"{self.num_examples} pictures"
        prior = ""
        if self.num_prior_examples:
            seen = self.steps * self.batch / self.num_prior_examples
            prior = f", and as many rows of {self.num_prior_examples} class pictures × {seen:.3g} exposures"
        return (
            f"{pictures} × {self.exposures:.4g} exposures / batch {self.batch} = {self.steps} steps "
            f"({self.epochs:.3g} epochs){prior}"
        )


def plan_length(
    checked: Checked,
    *,
    batch: int,
    accumulate: int = 1,
    steps: int | None = None,
    epochs: float | int | None = None,
    exposures: float | int | None = None,
    num_prior_examples: int = 0,
) -> Plan:
    """Return the plan of a run from exactly one of `steps`, `epochs` and `exposures` (per picture, on average).

    It counts the batches that will really be drawn, so the plan, the optimizer and the learning rate agree.
    """
    given = {"steps": steps, "epochs": epochs, "exposures": exposures}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        got = "got " + (" and ".join(f"{name}={value:g}" for name, value in chosen.items()) or "none")
        raise UserError(f"Give exactly one of steps, epochs and exposures ({got}).", "The others follow from it.")
    ((name, value),) = chosen.items()
    if value <= 0:
        raise UserError(f"{name}={value:g} trains nothing.", "Give a number above 0.")
    order = checked.order(batch)
    pictures, per_epoch, per_step = checked.num_pictures, order.examples_per_epoch, order.rows_per_step * accumulate
    if epochs is not None:
        steps = ceil(Fraction(epochs) * per_epoch / per_step)
    if exposures is not None:
        steps = ceil(Fraction(exposures) * pictures / per_step)
    assert steps is not None, "one of three was given"
    rows = steps * per_step
    seen = batch * accumulate
    return Plan(steps, float(rows / per_epoch), float(rows / pictures), pictures, num_prior_examples, seen)


def batch_notes(checked: Checked, batch: int) -> list[str]:
    """Say which buckets do not fill a batch; none of their pictures is dropped for it."""
    order = checked.order(batch)
    if order.has_one_bucket:
        return []
    return [
        f"Bucket {bucket.size[0]}×{bucket.size[1]} has {bucket.count} {'picture' if bucket.count == 1 else 'pictures'} "
        f"at batch {batch}: they are seen as a batch of {bucket.count}"
        for bucket in checked.buckets
        if bucket.count < batch
    ]
