"""What a run trains and what it tells: the slots that go in, the steps that come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from limner.types import Source


@dataclass(frozen=True)
class Slot:
    """One subject of a run: its examples, its seed, its length, its learning rates."""

    name: str
    source: Source
    seed: int
    steps: int
    learning_rate: float
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    """Learning rate of each group of the adapter; one that is not listed has `learning_rate`."""


@dataclass(frozen=True)
class Group:
    """Parameters of one slot that train together: the UNet's, a text encoder's, the new words'."""

    slot: str
    name: str
    tensors: int
    parameters: int
    learning_rate: float


@dataclass(frozen=True)
class SlotStep:
    """What one slot did in one step."""

    slot: str
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rates: Mapping[str, float]
    """Learning rate of each group in this step, warm-up and schedule in it."""
    grad_norm: float
    """Norm of the slot's gradient before clipping."""
    skipped: bool
    """True where loss or gradient was not finite, and the slot's weights stayed as they were."""
    pictures: tuple[str, ...]
    """Names of the step's rows, class pictures among them."""
    timesteps: tuple[int, ...]
    """The noise of each row, as the schedule counts it: 0 is nearly clean."""
    weight_norm: float
    """Norm of what learns, after the step; not finite where the weights are destroyed."""

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the first group."""
        return next(iter(self.learning_rates.values()))


@dataclass(frozen=True)
class Step:
    """One update of every slot that still trains; `index` counts from 1."""

    index: int
    slots: tuple[SlotStep, ...]
    seconds: float

    @property
    def loss(self) -> float:
        """Mean of the slots' losses."""
        return sum(s.loss for s in self.slots) / len(self.slots)
