"""The training loop: an iterator of Step that trains the slots of one adapter on one frozen base."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.errors import Guarded
from limner.families.family import Family
from limner.objectives import Denoising
from limner.seeds import generator
from limner.train.optimizer import AdamW
from limner.types import Batch, Conditioning, PerExample

MAX_SKIPPED = 5
"""So many steps in a row with a loss or gradient that is not finite stop the run."""


@runtime_checkable
class Source(Protocol):
    """Where a slot's examples come from: a pure function of the step and the seed."""

    def batch(self, step: int, *, seed: int) -> Batch: ...


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
class SlotStep:
    """What one slot did in one step."""

    slot: str
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float
    grad_norm: float
    """Norm of the slot's gradient before clipping."""
    skipped: bool
    """True where loss or gradient was not finite, and the slot's weights stayed as they were."""


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


class Training:
    """A run in the making: iterate over it to train; between two steps its state can be saved and loaded."""

    def __init__(
        self,
        family: Family,
        adapter: Attached,
        slots: Sequence[Slot],
        *,
        objective: Denoising,
        optimizer: AdamW,
    ) -> None:
        if len(slots) != adapter.slots:
            raise ValueError(f"{len(slots)} slots for an adapter of {adapter.slots}")
        self.family, self.adapter, self.slots = family, adapter, tuple(slots)
        self.objective, self.optimizer = objective, optimizer
        self.index = 0
        self.skipped_in_a_row = [0] * len(slots)
        self.parameters = [adapter.slot_parameters(i) for i in range(len(slots))]
        self.optimizers = [
            optimizer.build(p.values(), slot.learning_rate) for p, slot in zip(self.parameters, slots, strict=True)
        ]

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
        batches = [slot.source.batch(self.index, seed=slot.seed) for slot in self.slots]
        losses, per_slot = self._losses(batches)
        broken = [i for i, loss in enumerate(per_slot.tolist()) if not math.isfinite(loss)]
        if broken and len(broken) < len(self.slots):
            # stacked layers multiply a neighbour's zero gradients with these rows: without them it trains undisturbed
            quiet = [_silenced(b) if i in broken else b for i, b in enumerate(batches)]
            self._losses(quiet)[1].sum().backward()
        elif not broken:
            per_slot.sum().backward()
        self.index += 1
        done = [
            self._update(i, batches[i], float(per_slot[i].detach()), losses[i].detach())
            for i, slot in enumerate(self.slots)
            if self.index <= slot.steps
        ]
        return Step(self.index, tuple(done), time.perf_counter() - started)

    def _losses(self, batches: Sequence[Batch]) -> tuple[Float[Tensor, "slots rows"], Float[Tensor, " slots"]]:
        """Return the loss of every row, and each slot's: its weighted sum over the number of its instance rows."""
        losses = self._row_losses(batches).view(len(self.slots), -1)
        weight = torch.stack([b.weight for b in batches]).to(losses)
        instances = torch.tensor([b.is_prior.count(False) for b in batches]).to(losses)
        return losses, (weight * losses).sum(1) / instances

    def _row_losses(self, batches: Sequence[Batch]) -> PerExample:
        """Draw latents afresh from the moments of every row of every slot, and ask the objective."""
        device, dtype = self.family.device, self.family.dtype
        draws = [generator(slot.seed, "step", self.index) for slot in self.slots]
        latents = []
        for batch, draw in zip(batches, draws, strict=True):
            mean, std = batch.moments.float().unbind(1)
            latents.append(mean + std * torch.randn(mean.shape, generator=draw))
        x_0 = self.family.scale_latents(torch.cat(latents)).to(device)
        conditioning = Conditioning.cat([b.conditioning for b in batches])
        if self.adapter.learns_text:  # the cached embeddings are those of the untouched text encoder
            captions = [caption for b in batches for caption in b.captions]
            conditioning = replace(conditioning, hidden=self.family.encode_text(captions, learn=True).hidden)
        conditioning = conditioning.to(device, dtype)
        masks = [torch.ones_like(b.moments[:, 0, :1]) if b.mask is None else b.mask for b in batches]
        mask = None if all(b.mask is None for b in batches) else torch.cat(masks).to(device)
        return self.objective.losses(
            lambda x_t, t: self.family.predict(x_t.to(dtype), t, conditioning),
            x_0,
            self.family.schedule,
            draws=draws,
            mask=mask,
        )

    def _update(self, i: int, batch: Batch, loss: float, losses: PerExample) -> SlotStep:
        """Clip and apply the gradient of slot `i`, unless it is not finite."""
        slot, parameters, optimizer = self.slots[i], list(self.parameters[i].values()), self.optimizers[i]
        limit = self.optimizer.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        learning_rate = slot.learning_rate * self.optimizer.factor(self.index, slot.steps)
        finite = math.isfinite(loss) and math.isfinite(norm)  # a broken slot's gradient is zero, its loss says so
        if finite:
            self.skipped_in_a_row[i] = 0
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        else:
            self.skipped_in_a_row[i] += 1
            self._guard(i, batch, learning_rate)
        prior = torch.tensor(batch.is_prior)
        return SlotStep(
            slot=slot.name,
            loss=loss,
            instance_loss=float(losses[~prior].mean()),
            prior_loss=float(losses[prior].mean()) if prior.any() else None,
            learning_rate=learning_rate,
            grad_norm=norm,
            skipped=not finite,
        )

    def _guard(self, i: int, batch: Batch, learning_rate: float) -> None:
        if self.skipped_in_a_row[i] < MAX_SKIPPED:
            return
        raise Guarded(
            f"Stopped at step {self.index}: the loss was not finite {MAX_SKIPPED} times in a row "
            f"(pictures: {', '.join(batch.ids[:4])}; learning rate {learning_rate:g}; {self.family.dtype}). "
            f"The weights are those of step {self.index - MAX_SKIPPED}.",
            "Try a learning rate of 1e-4 or less, or precision=float32.",
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a resumed run needs: tensors by name, and plain numbers.

        No generator and no place in the data is in it: both follow from the seed and the step.
        """
        tensors: dict[str, Tensor] = {}
        for i, (parameters, optimizer) in enumerate(zip(self.parameters, self.optimizers, strict=True)):
            for name, parameter in parameters.items():
                kept = {"weight": parameter, **optimizer.state.get(parameter, {})}
                tensors |= {f"{i}|{key}|{name}": torch.as_tensor(t).contiguous() for key, t in kept.items()}
        return tensors, {"step": self.index, "skipped_in_a_row": self.skipped_in_a_row}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Set the state that `state` returned; the slots and the adapter must be the same as then."""
        for full_name, tensor in tensors.items():
            i, key, name = full_name.split("|", 2)
            parameter = self.parameters[int(i)][name]
            if key == "weight":
                parameter.copy_(tensor)
            else:
                state = self.optimizers[int(i)].state[parameter]
                state[key] = tensor.clone() if tensor.ndim == 0 else torch.empty_like(parameter).copy_(tensor)
        self.index, self.skipped_in_a_row = numbers["step"], numbers["skipped_in_a_row"]


def _silenced(batch: Batch) -> Batch:
    """Return a batch of the same shape whose rows are all zeros."""
    hidden = Conditioning(
        torch.zeros_like(batch.conditioning.hidden), batch.conditioning.pooled, batch.conditioning.time_ids
    )
    return replace(batch, moments=torch.zeros_like(batch.moments), conditioning=hidden)
