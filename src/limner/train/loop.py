"""The training loop: an iterator of Step that trains the slots of one adapter on one frozen base."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.errors import UserError
from limner.families.family import Family
from limner.objectives import Consistency, Denoising, Teacher
from limner.ranks import Ranks
from limner.seeds import generator
from limner.train.average import Ema
from limner.train.guards import require_finite
from limner.train.loss_scale import LossScale
from limner.train.optimizer import Optimizer
from limner.train.slots import Group, Slot, SlotStep, Step
from limner.train.update import Update
from limner.types import Batch, Conditioning, Latents, PerExample, Timesteps

__all__ = ["Slot", "SlotStep", "Step", "Training"]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over a batch of every slot; a step has one or more."""

    batches: Sequence[Batch]
    losses: Float[Tensor, "slots rows"]
    """Of the whole batch, however many processes share it."""
    per_slot: Float[Tensor, " slots"]
    timesteps: Int[Tensor, "slots rows"]


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
        self.objective, self.accumulate, self.teacher = objective, accumulate, teacher
        self._unprompted = family.encode_text([""]) if objective.needs_base else None
        self.ranks = Ranks()
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

    def share(self, ranks: Ranks) -> None:
        """Compute this process's rows of every batch only; each of the processes must be made and called alike."""
        if ranks.count > 1 and any(update.spec.fused_backward for update in self.updates):
            raise UserError(
                f"optimizer.fused_backward=true updates each weight before {ranks.count} processes can add up its "
                "gradient.",
                "Leave it out, or use one process.",
            )
        self.ranks = ranks

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
        self.adapter.zero_grad()
        training = [i for i, slot in enumerate(self.slots) if self.index < slot.steps]
        for i in training:
            self.updates[i].begin(self.index + 1)
        passes = [self._pass(part) for part in range(self.accumulate)]
        self.ranks.add([p.grad for i in training for p in self.parameters[i].values() if p.grad is not None])
        self.index += 1
        done = [self._update(i, passes) for i in training]
        return Step(self.index, tuple(done), time.perf_counter() - started)

    def _pass(self, part: int) -> Pass:
        """Add the gradients of batch `part` of this step to those that are there."""
        number = self.index * self.accumulate + part
        batches = [slot.source.batch(number, seed=slot.seed) for slot in self.slots]
        losses, whole, timesteps = self._losses(batches, part)
        per_slot = self._per_slot(batches, whole)
        broken = [i for i, loss in enumerate(per_slot.tolist()) if not math.isfinite(loss)]
        if not broken:
            self._backward(self._per_slot(batches, losses))
        elif len(broken) < len(self.slots):
            # stacked layers multiply a neighbour's zero gradients with these rows: without them it trains undisturbed
            quiet = [_silenced(b) if i in broken else b for i, b in enumerate(batches)]
            self._backward(self._per_slot(quiet, self._losses(quiet, part)[0]))
        return Pass(batches, whole, per_slot, timesteps)

    def _backward(self, per_slot: Float[Tensor, " slots"]) -> None:
        """Run back from the sum of the slots' losses: each slot's gradient is that of its own mean over the passes."""
        scale = per_slot.new_tensor([update.scale.factor / self.accumulate for update in self.updates])
        with ExitStack() as stack:
            for update in self.updates:
                stack.enter_context(update.backward())
            total = (scale * per_slot).sum()
            if total.requires_grad:  # a word learns nothing from rows whose captions do not have it
                total.backward()

    def _per_slot(self, batches: Sequence[Batch], losses: Float[Tensor, "slots rows"]) -> Float[Tensor, " slots"]:
        """Return each slot's loss: the weighted sum of its rows' over the number of its instance rows."""
        weight = torch.stack([b.weight for b in batches]).to(losses)
        instances = torch.tensor([b.is_prior.count(False) for b in batches]).to(losses)
        return (weight * losses).sum(1) / instances

    def _losses(
        self, batches: Sequence[Batch], part: int
    ) -> tuple[Float[Tensor, "slots rows"], Float[Tensor, "slots rows"], Int[Tensor, "slots rows"]]:
        """Return the loss of each row that is this process's, zeros for the others'; loss and timestep of every row."""
        slots, rows = len(batches), len(batches[0].ids)
        own = self.ranks.share(rows)
        computed = own or range(1)  # without a row of its own it goes through the motions, so that gradients are there
        losses, drawn = self._row_losses(batches, part, [i * rows + row for i in range(slots) for row in computed])
        placed = losses.new_zeros(slots, rows)
        placed[:, list(computed)] = losses.view(slots, -1)
        timesteps = torch.zeros_like(placed)
        timesteps[:, list(computed)] = drawn.view(slots, -1).to(placed)
        if not own:
            placed, timesteps = 0 * placed, 0 * timesteps
        whole = placed.detach().clone()
        self.ranks.add([whole, timesteps])
        return placed, whole, timesteps.long()

    def _row_losses(self, batches: Sequence[Batch], part: int, own: Sequence[int]) -> tuple[PerExample, Timesteps]:
        """Draw latents afresh from the moments of every row of every slot, and ask the objective about some rows."""
        device, dtype = self.family.device, self.family.dtype
        purpose = ("step", self.index) if self.accumulate == 1 else ("step", self.index, part)
        draws = [generator(slot.seed, *purpose) for slot in self.slots]
        latents = []
        for batch, draw in zip(batches, draws, strict=True):
            mean, std = batch.moments.float().unbind(1)
            latents.append(mean + std * torch.randn(mean.shape, generator=draw))
        x_0 = self.family.scale_latents(torch.cat(latents)).to(device)
        untouched = Conditioning.cat([b.conditioning for b in batches]).select(own).to(device, dtype)
        conditioning = untouched
        if self.adapter.learns_text:  # the cached embeddings are those of the untouched text encoder
            captions = [caption for b in batches for caption in b.captions]
            told = self.family.encode_text([captions[row] for row in own], learn=True)
            conditioning = replace(untouched, hidden=told.hidden, pooled=told.pooled).to(device, dtype)
        masks = [torch.ones_like(b.moments[:, 0, :1]) if b.mask is None else b.mask for b in batches]
        mask = None if all(b.mask is None for b in batches) else torch.cat(masks)[own].to(device)
        every = [self._is_taught(row) for b in batches for row in b.is_prior]
        taught = torch.tensor([every[row] for row in own], device=device)
        teacher = Teacher(
            predict=lambda x_t, t: self._taught(x_t, t, untouched, taught),
            unconditional=lambda x_t, t: self._taught(x_t, t, self._without_prompt(untouched), taught),
            taught=taught,
        )
        drawn: list[Timesteps] = []

        def predict(x_t: Latents, t: Timesteps) -> Tensor:
            drawn.append(t)
            return self.family.predict(x_t.to(dtype), t, conditioning)

        losses = self.objective.losses(
            predict,
            x_0,
            self.family.schedule,
            draws=draws,
            own=own,
            mask=mask,
            teacher=teacher if any(every[row] for row in own) else None,  # a plan has no values to look at
        )
        return losses, drawn[0]

    def _is_taught(self, is_prior: bool) -> bool:
        return self.objective.needs_base or (self.teacher and is_prior)

    def _without_prompt(self, conditioning: Conditioning) -> Conditioning:
        """Return the rows without their prompts; the sizes that they tell of stay."""
        assert self._unprompted is not None
        empty = self._unprompted.to(conditioning.hidden.device, conditioning.hidden.dtype)
        rows = empty.select([0] * len(conditioning))
        padded = conditioning.hidden.shape[1] // rows.hidden.shape[1]  # prompts of several windows
        return replace(rows, hidden=rows.hidden.repeat(1, padded, 1), time_ids=conditioning.time_ids)

    def _taught(
        self, x_t: Latents, t: Timesteps, conditioning: Conditioning, taught: Bool[Tensor, " batch"]
    ) -> Latents:
        """Return what the base alone predicts for the rows that are `taught`, and zeros for the others."""
        predictions, rows = torch.zeros_like(x_t), taught.nonzero()[:, 0]
        with self.adapter.disabled():
            told = conditioning.select(rows)
            predictions[rows] = self.family.predict(x_t[rows].to(self.family.dtype), t[rows], told).to(x_t)
        return predictions

    def _update(self, i: int, passes: Sequence[Pass]) -> SlotStep:
        """Clip and apply the gradient of slot `i`, unless it is not finite."""
        update = self.updates[i]
        loss = float(torch.stack([p.per_slot[i] for p in passes]).mean())
        norm = update.clip()
        finite = math.isfinite(loss) and math.isfinite(norm)  # a broken slot's gradient is zero, its loss says so
        if finite:
            self.skipped_in_a_row[i] = 0
            update.scale.passed()
            update.apply(self.index)
        elif not (math.isfinite(loss) and update.scale.overflowed()):
            self.skipped_in_a_row[i] += 1
        losses = torch.cat([p.losses[i] for p in passes])
        prior = torch.tensor([is_prior for p in passes for is_prior in p.batches[i].is_prior])
        step = SlotStep(
            slot=self.slots[i].name,
            loss=loss,
            instance_loss=float(losses[~prior].mean()),
            prior_loss=float(losses[prior].mean()) if prior.any() else None,
            learning_rates=update.learning_rates,
            grad_norm=norm,
            skipped=not finite,
            pictures=tuple(name for p in passes for name in p.batches[i].ids),
            timesteps=tuple(int(t) for p in passes for t in p.timesteps[i].tolist()),
            weight_norm=update.weight_norm(),
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


def _silenced(batch: Batch) -> Batch:
    """Return a batch of the same shape whose rows are all zeros."""
    told = batch.conditioning
    pooled = None if told.pooled is None else torch.zeros_like(told.pooled)
    quiet = replace(told, hidden=torch.zeros_like(told.hidden), pooled=pooled)
    return replace(batch, moments=torch.zeros_like(batch.moments), conditioning=quiet)
