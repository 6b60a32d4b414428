"""Forward and backward over the batches of several slots at once, each slot with its own rows, draws and loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.families.family import Family
from limner.objectives import Consistency, Denoising, Teacher
from limner.ranks import Ranks
from limner.seeds import generator
from limner.train.update import Update
from limner.types import Batch, Conditioning, Latents, PerExample, Timesteps


@dataclass(frozen=True)
class Turn:
    """What one slot brings to a step."""

    update: Update
    """Its seed and its loss scale are the slot's."""
    index: int
    """How many steps the slot has taken."""
    batches: tuple[Batch, ...]
    """One for each pass of the step."""


@dataclass(frozen=True)
class Passed:
    """What came of one batch of one slot."""

    batch: Batch
    losses: Float[Tensor, " rows"]
    """Of the whole batch, however many processes share it."""
    loss: Float[Tensor, ""]
    """Of the slot: the weighted sum of its rows' over the number of its instance rows."""
    timesteps: Int[Tensor, " rows"]


class Passes:
    """Adds each slot's gradient to those that are there: that of its own mean loss over the passes of a step.

    Rows of one shape go through the model together, whichever slots they are of; the loss is the sum over the slots,
    so that none sees the others.
    """

    def __init__(
        self,
        family: Family,
        adapter: Attached,
        *,
        objective: Denoising | Consistency,
        accumulate: int = 1,
        teacher: bool = False,
    ) -> None:
        self.family, self.adapter = family, adapter
        self.objective, self.accumulate, self.teacher = objective, accumulate, teacher
        self.ranks = Ranks()
        self._unprompted = family.encode_text([""]) if objective.needs_base else None

    def over(self, adapter: Attached) -> Passes:
        """Return the same over another adapter."""
        return Passes(self.family, adapter, objective=self.objective, accumulate=self.accumulate, teacher=self.teacher)

    def run(self, turns: Sequence[Turn]) -> list[list[Passed]]:
        """Take all passes of a step, a turn for each slot of the adapter; return what came of each slot's batches."""
        found: list[list[Passed]] = [[] for _ in turns]
        for part in range(self.accumulate):
            for places in _alike([turn.batches[part] for turn in turns]):
                with self._routed(places, len(turns)):
                    for place, passed in zip(places, self._pass([turns[i] for i in places], part), strict=True):
                        found[place].append(passed)
        return found

    @contextmanager
    def _routed(self, places: Sequence[int], slots: int) -> Iterator[None]:
        """Within this block the rows of a batch are those of some of the slots."""
        if len(places) == slots:
            yield
            return
        self.adapter.route(places)
        try:
            yield
        finally:
            self.adapter.route(None)

    def _pass(self, turns: Sequence[Turn], part: int) -> list[Passed]:
        """Add the gradients of the slots' batches number `part`, which are of one shape."""
        batches = [turn.batches[part] for turn in turns]
        losses, whole, timesteps = self._losses(turns, batches, part)
        per_slot = _per_slot(batches, whole)
        broken = [i for i, loss in enumerate(per_slot.tolist()) if not math.isfinite(loss)]
        if not broken:
            self._backward(turns, _per_slot(batches, losses))
        elif len(broken) < len(turns):
            # stacked layers multiply a neighbour's zero gradients with these rows: without them it trains undisturbed
            quiet = [_silenced(b) if i in broken else b for i, b in enumerate(batches)]
            self._backward(turns, _per_slot(quiet, self._losses(turns, quiet, part)[0]))
        return [Passed(batch, whole[i], per_slot[i], timesteps[i]) for i, batch in enumerate(batches)]

    def _backward(self, turns: Sequence[Turn], per_slot: Float[Tensor, " slots"]) -> None:
        """Run back from the sum of the slots' losses: each slot's gradient is that of its own mean over the passes."""
        scale = per_slot.new_tensor([turn.update.scale.factor / self.accumulate for turn in turns])
        with ExitStack() as stack:
            for turn in turns:
                stack.enter_context(turn.update.backward())
            total = (scale * per_slot).sum()
            if total.requires_grad:  # a word learns nothing from rows whose captions do not have it
                total.backward()

    def _losses(
        self, turns: Sequence[Turn], batches: Sequence[Batch], part: int
    ) -> tuple[Float[Tensor, "slots rows"], Float[Tensor, "slots rows"], Int[Tensor, "slots rows"]]:
        """Return the loss of each row that is this process's, zeros for the others'; loss and timestep of every row."""
        slots, rows = len(batches), len(batches[0].ids)
        own = self.ranks.share(rows)
        computed = own or range(1)  # without a row of its own it goes through the motions, so that gradients are there
        mine = [i * rows + row for i in range(slots) for row in computed]
        losses, drawn = self._row_losses(turns, batches, part, mine)
        placed = losses.new_zeros(slots, rows)
        placed[:, list(computed)] = losses.view(slots, -1)
        timesteps = torch.zeros_like(placed)
        timesteps[:, list(computed)] = drawn.view(slots, -1).to(placed)
        if not own:
            placed, timesteps = 0 * placed, 0 * timesteps
        whole = placed.detach().clone()
        self.ranks.add([whole, timesteps])
        return placed, whole, timesteps.long()

    def _row_losses(
        self, turns: Sequence[Turn], batches: Sequence[Batch], part: int, own: Sequence[int]
    ) -> tuple[PerExample, Timesteps]:
        """Draw latents afresh from the moments of every row of every slot, and ask the objective about some rows."""
        device, dtype = self.family.device, self.family.dtype
        parts = () if self.accumulate == 1 else (part,)
        draws = [generator(turn.update.slot.seed, "step", turn.index, *parts) for turn in turns]
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
        losses = self.objective.losses(
            partial(self._predicted, conditioning, drawn),
            x_0,
            self.family.schedule,
            draws=draws,
            own=own,
            mask=mask,
            teacher=teacher if any(every[row] for row in own) else None,  # a plan has no values to look at
        )
        return losses, drawn[0]

    def _predicted(
        self, conditioning: Conditioning, drawn: list[Timesteps], x_t: Latents, t: Timesteps
    ) -> Float[Tensor, "batch channels height width"]:
        """Return what the model predicts with the adapter on, and add the timesteps to those `drawn`."""
        drawn.append(t)
        return self.family.predict(x_t.to(self.family.dtype), t, conditioning)

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


def _alike(batches: Sequence[Batch]) -> list[list[int]]:
    """Return the numbers of the batches in groups that can be laid side by side: of one shape, and as long prompts."""
    groups: dict[object, list[int]] = {}
    for number, batch in enumerate(batches):
        groups.setdefault((batch.moments.shape, batch.conditioning.hidden.shape), []).append(number)
    return list(groups.values())


def _per_slot(batches: Sequence[Batch], losses: Float[Tensor, "slots rows"]) -> Float[Tensor, " slots"]:
    """Return each slot's loss: the weighted sum of its rows' over the number of its instance rows."""
    weight = torch.stack([b.weight for b in batches]).to(losses)
    instances = torch.tensor([b.is_prior.count(False) for b in batches]).to(losses)
    return (weight * losses).sum(1) / instances


def _silenced(batch: Batch) -> Batch:
    """Return a batch of the same shape whose rows are all zeros."""
    told = batch.conditioning
    pooled = None if told.pooled is None else torch.zeros_like(told.pooled)
    quiet = replace(told, hidden=torch.zeros_like(told.hidden), pooled=pooled)
    return replace(batch, moments=torch.zeros_like(batch.moments), conditioning=quiet)
