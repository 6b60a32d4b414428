"""Steps that are recorded once for each shape of their batches and then played again: a CUDA graph, on a GPU.

A recorded step is forward, backward, clipping and AdamW of all slots, with all draws, in buffers that stay where they
are. Before each one the batches are copied into them and the generators are seeded for the step; after it everything
that is told of it is read at once. Eager steps are the reference: the first time that a recording is played it has to
give what an eager step gives. Where a loss or a gradient is not finite it changes nothing, and an eager step follows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.adapters.lora import StackedLoRA
from limner.errors import UserError
from limner.seeds import Draws
from limner.train.flat import Flat
from limner.train.outcome import Outcome, unpacked
from limner.train.passes import Passes, Turn, alike, backward
from limner.train.rows import Rows
from limner.train.update import Update

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""How far loss and gradient of a recording may be from an eager step's, relative to it, by the base's number format."""
ARITHMETIC = 1e-3
"""The same of the change of the weights that AdamW makes of one gradient, fused or not; float32."""


@runtime_checkable
class Recorder(Protocol):
    """Records the work that a function gives to a device, and gives it to the device again."""

    def record(self, work: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        """Record `work`, which draws from these generators; it may be run meanwhile, any number of times."""

    def play(self) -> None:
        """Do the recorded work again, with what its tensors and generators hold now."""


class CudaGraph:
    """A recorder on an NVIDIA GPU: one launch for thousands of kernels."""

    warmups = 3
    _pools: ClassVar[dict[torch.device, Any]] = {}
    """Memory that all graphs of a GPU share: none of them leaves anything in it that another may not overwrite."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._graph = torch.cuda.CUDAGraph()
            self._pools.setdefault(device, torch.cuda.graph_pool_handle())

    def record(self, work: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        """Run it a few times, so that libraries choose their kernels, and then record it."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(self.warmups):
                    work()
            torch.cuda.current_stream().wait_stream(aside)
            for generator in generators:
                self._graph.register_generator_state(generator)
            pool = self._pools[self._device]
            # threads that fetch pictures go on meanwhile
            with torch.cuda.graph(self._graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                work()

    def play(self) -> None:
        """Launch it."""
        with torch.cuda.device(self._device):
            self._graph.replay()


@dataclass
class Recording:
    """The recorded step of one shape of batches."""

    rows: list[Rows]
    """Its buffers, one for each pass."""
    recorder: Recorder
    told: Float[Tensor, "slots numbers"]
    """What it tells: of each slot losses and timesteps of all rows, mean loss, norms of gradient and weights."""
    is_checked: bool = False


class Recorded:
    """Takes the steps of N slots by recordings, one for each shape of their batches."""

    def __init__(
        self,
        passes: Passes,
        updates: Sequence[Update],
        recorder: Callable[[], Recorder],
        members: Sequence[Attached] = (),
    ) -> None:
        """`members` are the adapters whose slots those of the stacked one are, where several train together."""
        adapter = passes.adapter
        assert isinstance(adapter, StackedLoRA), f"{type(adapter).__name__} cannot be recorded"
        assert not adapter.learns_text, "tokens are read on the host"
        self._passes, self._adapter, self._new = passes, adapter, recorder
        lent = [member for member in members if isinstance(member, StackedLoRA)]
        assert len(lent) == len(members), "what lies in a stacked LoRA is a LoRA"
        self._flat = Flat(*adapter.lie_in_rows(lent), updates)
        self._acting = adapter.attached if members else nullcontext
        passes.draws = Draws(passes.family.device)
        self._recordings: dict[tuple[Any, ...], Recording] = {}

    def step(self, turns: Sequence[Turn], training: Sequence[int]) -> list[Outcome] | None:
        """Take a step with the slots numbered in `training`; return what came of each of these.

        None is no step: an eager one has to be taken, because the batches are of several shapes, or because a loss or
        a gradient is not finite.
        """
        parts = range(self._passes.accumulate)
        self._flat.begin(turns, training)
        if any(len(alike([turn.batches[part] for turn in turns])) > 1 for part in parts):
            return self._give_up(turns)
        rows = [self._passes.lay([turn.batches[part] for turn in turns]) for part in parts]
        shape = tuple(one.shape for one in rows)
        if shape not in self._recordings:
            self._recordings[shape] = self._record(rows, turns)
        recording = self._recordings[shape]
        if not recording.is_checked:
            self._check(recording, rows, turns, training)
        told = self._play(recording, rows, turns)
        if not all(math.isfinite(n) for slot in training for n in told[slot, -3:-1].tolist()):
            return self._give_up(turns)
        self._flat.count(training)
        return [self._outcome(turns[slot], told[slot]) for slot in training]

    def _give_up(self, turns: Sequence[Turn]) -> None:
        self._flat.release([turn.update for turn in turns])

    def _outcome(self, turn: Turn, numbers: Float[Tensor, " numbers"]) -> Outcome:
        turn.update.scale.passed()
        turn.update.follow(turn.index + 1)
        return unpacked(numbers[:-1], weight_norm=float(numbers[-1]), applied=True, overflowed=False)

    def _play(
        self, recording: Recording, rows: Sequence[Rows], turns: Sequence[Turn]
    ) -> Float[Tensor, "slots numbers"]:
        """Fill the buffers, seed the generators, play, and return on the host what is told."""
        self._fill(recording, rows, turns)
        recording.recorder.play()
        return recording.told.cpu()

    def _fill(self, recording: Recording, rows: Sequence[Rows], turns: Sequence[Turn]) -> None:
        for part, (buffer, fresh) in enumerate(zip(recording.rows, rows, strict=True)):
            buffer.fill(fresh)
            for slot, turn in enumerate(turns):
                self._passes.seeded(turn, slot, part)

    def _record(self, rows: Sequence[Rows], turns: Sequence[Turn]) -> Recording:
        """Make buffers and record the step; weights and means are afterwards what they were."""
        device, slots = self._passes.family.device, len(turns)
        numbers = sum(2 * one.weight.shape[1] for one in rows) + 3
        recording = Recording(
            [one.on(device).copied() for one in rows], self._new(), torch.zeros(slots, numbers, device=device)
        )
        self._fill(recording, rows, turns)
        before = self._flat.copy()
        generators = [self._passes.draws.of(slot, part) for part in range(len(rows)) for slot in range(slots)]
        with self._acting(), warnings.catch_warnings():
            # a slot's weights lie side by side, and so those of one layer do not: torch says so once
            warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
            recording.recorder.record(lambda: self.work(recording), generators)
        self._flat.restore(before)
        return recording

    def work(self, recording: Recording) -> None:
        """Take the step on the buffers; nothing in it waits for the device or makes a value on the host."""
        slots = recording.told.shape[0]
        self._flat.grads.zero_()
        per_pass: list[Tensor] = []
        losses: list[Tensor] = []
        timesteps: list[Tensor] = []
        for part, rows in enumerate(recording.rows):
            own, drawn = self._passes.losses(rows, [self._passes.draws.of(slot, part) for slot in range(slots)])
            per_slot = rows.per_slot(own)
            backward(per_slot, self._flat.scales / len(recording.rows))
            per_pass.append(per_slot.detach())
            losses.append(own.detach())
            timesteps.append(drawn.to(own))
        mean = torch.stack(per_pass).mean(dim=0)
        norms = self._flat.step(mean)
        recording.told.copy_(torch.cat([*losses, *timesteps, mean[:, None], norms.T], dim=1))

    def _check(
        self, recording: Recording, rows: Sequence[Rows], turns: Sequence[Turn], training: Sequence[int]
    ) -> None:
        """Make sure that the recording gives what an eager step gives; everything is afterwards as before.

        Raises:
            UserError: it does not.
        """
        flat, before = self._flat, self._flat.copy()
        told = self._play(recording, rows, turns)
        weights, grads = flat.weights.clone(), flat.grads.clone()
        flat.restore(before)
        updates = {slot: turns[slot].update for slot in training}
        flat.release([*updates.values()])
        with self._acting():
            self._adapter.zero_grad()
            passed = self._passes.run(turns)
        norms = [float(update.clip()) for update in updates.values()]
        losses = torch.stack([torch.stack([one.loss for one in own]).mean() for own in passed]).tolist()
        if all(map(math.isfinite, [*losses, *norms])):  # else an eager step follows, and the next one is compared
            allowed = TOLERANCE[self._passes.family.dtype]
            for slot in training:
                apart = [abs(float(told[slot, -3]) - losses[slot]) / abs(losses[slot] or 1.0)]
                apart.append(distance(grads[slot], flat.grads[slot]))
                require_equal(max(apart), allowed, turns[slot].update.slot.name, "loss and gradient")
            flat.grads.copy_(grads)  # the same gradient, so that only the arithmetic of the update is compared
            for update in updates.values():
                update.parts[0].optimizer.step()
            for slot in training:
                apart = [distance(weights[slot] - before.weights[slot], flat.weights[slot] - before.weights[slot])]
                require_equal(max(apart), ARITHMETIC, turns[slot].update.slot.name, "weights")
            recording.is_checked = True
        flat.restore(before)
        flat.take_back(updates)


def distance(found: Tensor, expected: Tensor) -> float:
    """Return how far two tensors are apart, relative to the length of the second; 0 where both are zero."""
    length = float(torch.linalg.vector_norm(expected))
    apart = float(torch.linalg.vector_norm(found - expected))
    return apart / length if length else apart


def require_equal(apart: float, allowed: float, slot: str, what: str) -> None:
    """Stop where a recorded step is not the eager one."""
    if not apart <= allowed:
        raise UserError(
            f"fast=graph: the recorded step is not the eager one: {what} of {slot} differ by {apart:.2g} of their "
            f"length, and {allowed:g} is allowed.",
            "Leave fast out, and please report this with the output of limner doctor.",
        )
