"""The training loop: an iterator of Step that trains the slots of one adapter on one frozen base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.errors import UserError
from limner.families.family import Family
from limner.objectives import Consistency, Denoising
from limner.ranks import Ranks
from limner.train.average import Ema
from limner.train.guards import require_finite
from limner.train.loss_scale import LossScale
from limner.train.optimizer import Optimizer
from limner.train.outcome import Outcome, settle
from limner.train.passes import Passes, Turn
from limner.train.recorded import Recorded, Recorder
from limner.train.slots import Group, Slot, SlotStep, Step
from limner.train.update import Update

__all__ = ["Slot", "SlotStep", "Step", "Training"]


class Training:
    """A run in the making: iterate over it to train; between two steps its state can be saved and loaded."""

    def __init__(
        self,
        family: Family,
        adapter: Attached,
        slots: Sequence[Slot],
        *,
        objective: Denoising | Consistency,
        optimizer: Optimizer,
        accumulate: int = 1,
        ema: Ema | None = None,
        teacher: bool = False,
    ) -> None:
        if len(slots) != adapter.slots:
            raise ValueError(f"{len(slots)} slots for an adapter of {adapter.slots}")
        self.family, self.adapter, self.slots = family, adapter, tuple(slots)
        self.objective, self.accumulate = objective, accumulate
        self.passes = Passes(family, adapter, objective=objective, accumulate=accumulate, teacher=teacher)
        self.recorder: Callable[[], Recorder] | None = None
        """What records its steps, where they are recorded: alone, or together with others' (see `Company`)."""
        self._recorded: Recorded | None = None
        self.index = 0
        self.skipped_in_a_row = [0] * len(slots)
        self.parameters = [adapter.slot_parameters(i) for i in range(len(slots))]
        for slot in slots:
            optimizer.check(learning_rate=slot.learning_rate, accumulate=accumulate)
            optimizer.warmup(slot.steps)
        if optimizer.fused_backward and not all(p.requires_grad for p in self.parameters[0].values()):
            raise UserError(
                "optimizer.fused_backward=true is for adapters that train the base's own weights, and this one adds "
                f"{adapter.trainable_parameters():,} weights of its own, whose gradients are small.",
                "Leave it out, or set adapter.kind=full.",
            )
        self._optimizer, self._ema = optimizer, ema or Ema()
        self.forget()

    def forget(self) -> None:
        """Begin with fresh optimizers and averages, and without gradients; the weights stay as they are."""
        self.adapter.zero_grad()
        self.updates = [
            Update(p, slot, optimizer=self._optimizer, ema=self._ema, scale=LossScale.of(self.family.dtype))
            for p, slot in zip(self.parameters, self.slots, strict=True)
        ]

    def rebind(self) -> None:
        """Go on with the adapter's weights and gradients where they lie now: their memory has moved."""
        for i, held in enumerate(self.parameters):
            for name, view in self.adapter.slot_parameters(i).items():
                held[name].data, held[name].grad = view, view.grad

    def share(self, ranks: Ranks) -> None:
        """Compute this process's rows of every batch only; each of the processes must be made and called alike."""
        if ranks.count > 1 and any(update.spec.fused_backward for update in self.updates):
            raise UserError(
                f"optimizer.fused_backward=true updates each weight before {ranks.count} processes can add up its "
                "gradient.",
                "Leave it out, or use one process.",
            )
        if ranks.count > 1 and self.recorder:
            raise UserError(
                f"fast=graph: {ranks.count} processes cannot add up gradients within a recorded step.",
                "Leave it out, or use one process.",
            )
        self.passes.ranks = ranks

    def record(self, recorder: Callable[[], Recorder]) -> None:
        """Have the steps from here on recorded, once for each shape of their batches, and played again."""
        self.recorder, self._recorded = recorder, None

    @property
    def ranks(self) -> Ranks:
        """The processes that share this training."""
        return self.passes.ranks

    @property
    def steps(self) -> int:
        """How many steps the longest slot takes."""
        return max(slot.steps for slot in self.slots)

    def __iter__(self) -> Iterator[Step]:
        while self.index < self.steps:
            yield self.step()

    def step(self) -> Step:
        """Train every slot that is not finished by one update."""
        started = time.perf_counter()
        turns = self.turns()
        if self.recorder and not self._recorded:
            self._recorded = Recorded(self.passes, self.updates, self.recorder)
            self.rebind()
        outcomes = self._recorded.step(turns, self.training) if self._recorded else None
        return self.take(outcomes or self._eagerly(turns), turns, started)

    def _eagerly(self, turns: Sequence[Turn]) -> list[Outcome]:
        """Take the step as it stands here: the reference of every faster way."""
        self.adapter.zero_grad()
        passed = self.passes.run(turns)
        training = self.training
        self.ranks.add([p.grad for i in training for p in self.parameters[i].values() if p.grad is not None])
        updates = [self.updates[i] for i in training]
        return settle(updates, [passed[i] for i in training], [self.index + 1] * len(training))

    def turns(self) -> list[Turn]:
        """Return what each slot brings to the coming step, its learning rates set."""
        for i in self.training:
            self.updates[i].begin(self.index + 1)
        numbers = range(self.index * self.accumulate, (self.index + 1) * self.accumulate)
        batches = [[slot.source.batch(number, seed=slot.seed) for slot in self.slots] for number in numbers]
        return [Turn(u, self.index, tuple(part[i] for part in batches)) for i, u in enumerate(self.updates)]

    def take(self, outcomes: Sequence[Outcome], turns: Sequence[Turn], started: float) -> Step:
        """Count a step that every slot that is not finished has taken; what came of each is given in their order."""
        training = self.training
        self.index += 1
        done = [self._count(i, turns[i], outcome) for i, outcome in zip(training, outcomes, strict=True)]
        return Step(self.index, tuple(done), time.perf_counter() - started)

    @property
    def training(self) -> list[int]:
        """The slots that are not finished."""
        return [i for i, slot in enumerate(self.slots) if self.index < slot.steps]

    def _count(self, i: int, turn: Turn, outcome: Outcome) -> SlotStep:
        """Return what slot `i` did; stop where its numbers are broken."""
        self.skipped_in_a_row[i] = 0 if outcome.applied else self.skipped_in_a_row[i] + (not outcome.overflowed)
        prior = torch.tensor([is_prior for batch in turn.batches for is_prior in batch.is_prior])
        step = SlotStep(
            slot=self.slots[i].name,
            loss=outcome.loss,
            instance_loss=float(outcome.losses[~prior].mean()),
            prior_loss=float(outcome.losses[prior].mean()) if prior.any() else None,
            learning_rates=self.updates[i].learning_rates,
            grad_norm=outcome.grad_norm,
            skipped=not outcome.applied,
            pictures=tuple(name for batch in turn.batches for name in batch.ids),
            timesteps=outcome.timesteps,
            weight_norm=outcome.weight_norm,
        )
        require_finite(step, self.index, skipped_in_a_row=self.skipped_in_a_row[i], dtype=self.family.dtype)
        return step

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within this block the weights are those to judge and to save: their average, where one is kept.

        Afterwards they are bit for bit what they were, so that previews and saves never change the training.
        """
        with ExitStack() as stack:
            for update in self.updates:
                stack.enter_context(update.evaluating())
            yield

    def groups(self) -> list[Group]:
        """Return what trains: every group of every slot, its size and its learning rate."""
        return [
            Group(slot.name, name, change.tensors, change.parameters, slot.rates.get(name, slot.learning_rate))
            for i, slot in enumerate(self.slots)
            for name, change in self.adapter.changes(i).items()
        ]

    def check_changes(self) -> None:
        """Refuse a result in which something that was to be trained is what it was before."""
        for i, slot in enumerate(self.slots):
            for group, change in self.adapter.changes(i).items():
                if change.norm == 0:
                    rate = slot.rates.get(group, slot.learning_rate)
                    raise UserError(
                        f"{slot.name}: {group} was to be trained but did not change in {self.index} steps "
                        f"(learning rate {rate:g}).",
                        "Raise steps or its learning rate.",
                    )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a resumed run needs: tensors by name, and plain numbers.

        No generator and no place in the data is in it: both follow from the seed and the step.
        """
        tensors: dict[str, Tensor] = {}
        numbers: list[dict[str, Any]] = []
        for i, update in enumerate(self.updates):
            held, counted = update.state()
            tensors |= {f"{i}|{name}": tensor.contiguous() for name, tensor in held.items()}
            numbers.append(counted)
        return tensors, {"step": self.index, "skipped_in_a_row": self.skipped_in_a_row, "updates": numbers}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Set the state that `state` returned; the slots and the adapter must be the same as then."""
        for i, update in enumerate(self.updates):
            prefix = f"{i}|"
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            update.restore(own, numbers["updates"][i])
        self.index, self.skipped_in_a_row = numbers["step"], numbers["skipped_in_a_row"]
