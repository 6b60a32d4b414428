"""Forward and backward over the batches of several slots at once, each slot with its own rows, draws and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.families.family import Family
from limner.machine import to_device
from limner.objectives import Consistency, Denoising, Teacher
from limner.ranks import Ranks
from limner.schedule import Schedule
from limner.seeds import Draws
from limner.train.rows import Rows
from limner.train.update import Update
from limner.types import Batch, Conditioning, Latents, Timesteps


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
    so that none sees the others. Nothing between the first draw and the last gradient waits for a value of the device.
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
        self.ranks, self.draws = Ranks(), Draws()
        self.compiled: Callable[[], AbstractContextManager[None]] = nullcontext
        """Within its block the UNet computes as it is to compute here."""
        self._unprompted = family.encode_text([""]) if objective.needs_base else None
        self._schedule = family.schedule, family.schedule.on(family.device)

    def over(self, adapter: Attached) -> Passes:
        """Return the same over another adapter."""
        made = Passes(self.family, adapter, objective=self.objective, accumulate=self.accumulate, teacher=self.teacher)
        made.compiled = self.compiled
        return made

    def run(self, turns: Sequence[Turn]) -> list[list[Passed]]:
        """Take all passes of a step, a turn for each slot of the adapter; return what came of each slot's batches.

        The adapter's gradients are zero before.
        """
        found = self._run(turns)
        if any(turn.update.spec.fused_backward for turn in turns):
            return found
        losses = torch.stack([passed.loss for own in found for passed in own]).tolist()
        places = [(place, part) for place, own in enumerate(found) for part in range(len(own))]
        broken = {place for place, loss in zip(places, losses, strict=True) if not math.isfinite(loss)}
        if broken:
            # stacked layers multiply a neighbour's zero gradients with these rows: without them it trains undisturbed
            self.adapter.zero_grad()
            if len({place for place, _ in broken}) < len(turns):
                self._run(turns, silent=broken)
        return found

    def _run(self, turns: Sequence[Turn], silent: Set[tuple[int, int]] = frozenset()) -> list[list[Passed]]:
        """Take all passes of a step; batches of a slot and a part in `silent` give zeros, and no gradient."""
        found: list[list[Passed]] = [[] for _ in turns]
        for part in range(self.accumulate):
            for places in alike([turn.batches[part] for turn in turns]):
                if all((place, part) in silent for place in places):
                    continue
                batches = [turns[i].batches[part] for i in places]
                quiet = [_silenced(b) if (i, part) in silent else b for i, b in zip(places, batches, strict=True)]
                with self._routed(places, len(turns)):
                    for place, passed in zip(places, self._pass(turns, places, part, quiet), strict=True):
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

    def _pass(self, turns: Sequence[Turn], places: Sequence[int], part: int, batches: list[Batch]) -> list[Passed]:
        """Add the gradients of the batches number `part` of the slots at `places`, which are of one shape."""
        rows = self.lay(batches).on(self.family.device)
        draws = [self.seeded(turns[place], place, part) for place in places]
        losses, timesteps = self.losses(rows, draws)
        whole = losses.detach()
        if self.ranks.count > 1:
            losses, whole, timesteps = self._gathered(losses, timesteps, rows)
        mine = [turns[place] for place in places]
        self._backward(mine, rows.per_slot(losses))
        per_slot = rows.per_slot(whole)
        return [Passed(batch, whole[i], per_slot[i], timesteps[i]) for i, batch in enumerate(batches)]

    def lay(self, batches: Sequence[Batch]) -> Rows:
        """Return batches of one shape side by side, where they are."""
        slots, each = len(batches), len(batches[0].ids)
        taught = [self.objective.needs_base or (self.teacher and row) for b in batches for row in b.is_prior]
        own = None
        if self.ranks.count > 1:  # without a row of its own it goes through the motions, so that gradients are there
            own = [slot * each + row for slot in range(slots) for row in self.ranks.share(each) or range(1)]
        return Rows.of(batches, taught, own=own, dtype=self.family.dtype)

    def seeded(self, turn: Turn, slot: int, part: int) -> torch.Generator:
        """Return the generator of a slot's pass in its turn's step."""
        parts = () if self.accumulate == 1 else (part,)
        return self.draws.seeded(slot, part, turn.update.slot.seed, "step", turn.index, *parts)

    def _backward(self, turns: Sequence[Turn], per_slot: Float[Tensor, " slots"]) -> None:
        """Run back from the slots' losses; a fused backward, which updates as it goes, only from finite ones."""
        factors = torch.tensor([turn.update.scale.factor / self.accumulate for turn in turns])
        if any(turn.update.spec.fused_backward for turn in turns) and not bool(per_slot.isfinite().all()):
            return
        with ExitStack() as stack:
            for turn in turns:
                stack.enter_context(turn.update.backward())
            backward(per_slot, to_device(factors, per_slot.device))

    def _gathered(
        self, losses: Float[Tensor, "slots own"], timesteps: Int[Tensor, "slots own"], rows: Rows
    ) -> tuple[Float[Tensor, "slots rows"], Float[Tensor, "slots rows"], Int[Tensor, "slots rows"]]:
        """Return the loss of each row that is this process's, zeros for the others'; loss and timestep of every row."""
        slots, each = rows.weight.shape
        own = self.ranks.share(each)
        computed = list(own or range(1))
        placed = losses.new_zeros(slots, each)
        placed[:, computed] = losses
        drawn = torch.zeros_like(placed)
        drawn[:, computed] = timesteps.to(placed)
        if not own:
            placed, drawn = 0 * placed, 0 * drawn
        whole = placed.detach().clone()
        self.ranks.add([whole, drawn])
        return placed, whole, drawn.long()

    def losses(
        self, rows: Rows, draws: Sequence[torch.Generator]
    ) -> tuple[Float[Tensor, "slots own"], Int[Tensor, "slots own"]]:
        """Draw latents afresh from the moments of every row, and ask the objective about this process's rows.

        Returns the loss and the timestep of each. Nothing here depends on a value, only on shapes: it can be recorded.
        """
        device, dtype = self.family.device, self.family.dtype
        mean, std = rows.moments.unbind(1)
        block = (mean.shape[0] // len(draws), *mean.shape[1:])
        drawn = torch.cat([torch.randn(block, generator=g, device=g.device) for g in draws])
        x_0 = self.family.scale_latents(mean + std * to_device(drawn, device))
        untouched = conditioning = rows.conditioning
        if self.adapter.learns_text:  # the cached embeddings are those of the untouched text encoder
            told = self.family.encode_text(rows.captions, learn=True)
            conditioning = replace(untouched, hidden=told.hidden, pooled=told.pooled).to(device, dtype)
        timesteps: list[Timesteps] = []
        predict = partial(self._predicted, conditioning, timesteps)
        schedule, teacher = self._own_schedule(), self._teacher(rows)
        with self.compiled():
            losses = self.objective.losses(
                predict, x_0, schedule, draws=draws, own=rows.own, mask=rows.mask, teacher=teacher
            )
        slots = rows.weight.shape[0]
        return losses.view(slots, -1), timesteps[0].view(slots, -1)

    def _own_schedule(self) -> Schedule:
        """Return the family's schedule with its numbers on the device."""
        if self._schedule[0] is not self.family.schedule:
            self._schedule = self.family.schedule, self.family.schedule.on(self.family.device)
        return self._schedule[1]

    def _teacher(self, rows: Rows) -> Teacher | None:
        """Return the untouched base as it is asked about some rows; None where none of them learns from it."""
        if rows.taught is None:
            return None
        return Teacher(
            predict=lambda x_t, t: self._taught(x_t, t, rows.conditioning, rows.places),
            unconditional=lambda x_t, t: self._taught(x_t, t, self._without_prompt(rows.conditioning), rows.places),
            taught=rows.taught,
        )

    def _predicted(
        self, conditioning: Conditioning, drawn: list[Timesteps], x_t: Latents, t: Timesteps
    ) -> Float[Tensor, "batch channels height width"]:
        """Return what the model predicts with the adapter on, and add the timesteps to those `drawn`."""
        drawn.append(t)
        return self.family.predict(x_t.to(self.family.dtype), t, conditioning)

    def _without_prompt(self, conditioning: Conditioning) -> Conditioning:
        """Return the rows without their prompts; the sizes that they tell of stay."""
        assert self._unprompted is not None
        empty = self._unprompted.to(conditioning.hidden.device, conditioning.hidden.dtype)
        windows = conditioning.hidden.shape[1] // empty.hidden.shape[1]
        pooled = None if empty.pooled is None else empty.pooled.repeat(len(conditioning), 1)
        return Conditioning(empty.hidden.repeat(len(conditioning), windows, 1), pooled, conditioning.time_ids)

    def _taught(
        self, x_t: Latents, t: Timesteps, conditioning: Conditioning, places: Int[Tensor, " taught"] | None
    ) -> Latents:
        """Return what the base alone predicts for the rows at `places` (None: for all), and zeros for the others."""
        with self.adapter.disabled():
            if places is None:
                return self.family.predict(x_t.to(self.family.dtype), t, conditioning).to(x_t)
            told = conditioning.select(places)
            predictions = torch.zeros_like(x_t)
            predictions[places] = self.family.predict(x_t[places].to(self.family.dtype), t[places], told).to(x_t)
        return predictions


def backward(per_slot: Float[Tensor, " slots"], factors: Float[Tensor, " slots"]) -> None:
    """Run back from the sum of the slots' losses, each times its factor: each slot's gradient is that of its own."""
    total = (factors.to(per_slot) * per_slot).sum()
    if total.requires_grad:  # a word learns nothing from rows whose captions do not have it
        total.backward()


def alike(batches: Sequence[Batch]) -> list[list[int]]:
    """Return the numbers of the batches in groups that can be laid side by side: of one shape, and as long prompts."""
    groups: dict[object, list[int]] = {}
    for number, batch in enumerate(batches):
        groups.setdefault((batch.moments.shape, batch.conditioning.hidden.shape), []).append(number)
    return list(groups.values())


def _silenced(batch: Batch) -> Batch:
    """Return a batch of the same shape whose rows are all zeros."""
    told = batch.conditioning
    pooled = None if told.pooled is None else torch.zeros_like(told.pooled)
    quiet = replace(told, hidden=torch.zeros_like(told.hidden), pooled=pooled)
    return replace(batch, moments=torch.zeros_like(batch.moments), conditioning=quiet)
