"""AdamW for all slots of a stacked adapter at once, in buffers that stay where they are: what can be recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limner.train.optimizer import AdamW
from limner.train.passes import Turn
from limner.train.update import Update

Rows = Float[Tensor, "slots width"]


@dataclass(frozen=True)
class Kept:
    """A copy of all that a step changes."""

    weights: Rows
    mean: Rows
    square: Rows
    steps: Float[Tensor, " slots"]


class Flat:
    """The weights of N slots, their gradients and Adam's two means: a row of memory for each slot.

    The slots' own parameters and the states of their own optimizers are views of these rows, so that either way of
    taking a step goes on from the other.
    """

    def __init__(self, weights: Rows, grads: Rows, updates: Sequence[Update]) -> None:
        self.weights, self.grads = weights, grads
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)
        slots, device = len(updates), weights.device
        self.steps, self.skips = torch.zeros(slots, device=device), torch.zeros(slots, device=device)
        self.numbers = torch.zeros(4, slots, device=device)
        """Of the coming step, for each slot: learning rate, whether it trains, loss scale, largest norm."""
        self.rates, self.trains, self.scales, self.max_norms = self.numbers.unbind()
        self.has_scale = any(update.scale.limit > 1 for update in updates)
        self._counted = [torch.tensor(0.0) for _ in updates]
        """How many updates each slot has had, as its own optimizer counts them."""
        self._optimizers = [self._optimizer(i, update) for i, update in enumerate(updates)]

    def _optimizer(self, slot: int, update: Update) -> torch.optim.Optimizer:
        """Return the optimizer of a slot's row, whose state are the rows here."""
        assert isinstance(update.spec, AdamW), f"{type(update.spec).__name__} cannot be recorded"
        assert len(update.parts) == 1, "one group, and so one learning rate for each slot"
        row = self.weights[slot].detach()
        row.grad = self.grads[slot]
        optimizer: Any = update.spec.fused(row, self.rates[slot])
        optimizer.state[row] = {
            "step": self.steps[slot], "exp_avg": self.mean[slot], "exp_avg_sq": self.square[slot],
        }  # fmt: skip
        optimizer._warned_capturable_if_run_uncaptured = True  # it is, before it is recorded
        optimizer.found_inf = self.skips[slot]  # torch's fused kernel leaves everything as it is where this is 1
        return optimizer

    def begin(self, turns: Sequence[Turn], training: Sequence[int]) -> None:
        """Set the numbers of the coming step, and take up what the slots' own optimizers hold."""
        for slot, turn in enumerate(turns):
            self._adopt(slot, turn.update)
        updates = [turn.update for turn in turns]
        told = [
            [update.parts[0].settings["lr"] for update in updates],
            [float(slot in training) for slot in range(len(updates))],
            [update.scale.factor for update in updates],
            [update.spec.max_grad_norm or float("inf") for update in updates],
        ]
        fresh = torch.tensor(told)
        if self.numbers.is_cuda:
            fresh = fresh.pin_memory()
        self.numbers.copy_(fresh, non_blocking=True)

    def _adopt(self, slot: int, update: Update) -> None:
        """Have the state of a slot's own optimizer lie in the rows, where it does not, and its counter be one."""
        (part,) = update.parts
        for parameter in part.parameters.values():
            state = part.optimizer.state[parameter]
            if state.get("step") is self._counted[slot]:
                return
            for key, rows in (("exp_avg", self.mean), ("exp_avg_sq", self.square)):
                place = rows.as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())
                place.copy_(state[key]) if key in state else place.zero_()
                state[key] = place
            self._counted[slot].fill_(float(state.get("step", 0.0)))
            state["step"] = self._counted[slot]
        self.steps[slot].fill_(float(self._counted[slot]))

    def release(self, updates: Sequence[Update]) -> None:
        """Give each slot's own optimizer counters of its own: it is about to take a step."""
        for update in updates:
            for part in update.parts:
                for state in part.optimizer.state.values():
                    state["step"] = state["step"].clone()

    def take_back(self, updates: Mapping[int, Update]) -> None:
        """Have the counters be what they were before `release`, by slot."""
        for slot, update in updates.items():
            for part in update.parts:
                for state in part.optimizer.state.values():
                    state["step"] = self._counted[slot]

    def count(self, slots: Sequence[int]) -> None:
        """Note that some slots have been updated by `step`."""
        for slot in slots:
            self._counted[slot] += 1

    @torch.no_grad()
    def step(self, losses: Float[Tensor, " slots"]) -> Float[Tensor, "2 slots"]:
        """Clip and apply the gradients; return their norms before it, and those of the weights after it.

        A slot that does not train stays as it is; where loss or gradient of one that does is not finite, all do.
        """
        if self.has_scale:
            self.grads.div_(self.scales[:, None])
        norms = torch.linalg.vector_norm(self.grads, dim=1)
        # torch.nn.utils.clip_grads_with_norm_, for all slots at once
        self.grads.mul_((self.max_norms / (norms + 1e-6)).clamp(max=1.0)[:, None])
        sound = (losses.isfinite() & norms.isfinite()) | (self.trains == 0)
        self.skips.copy_(1 - self.trains * sound.all())
        for optimizer in self._optimizers:
            optimizer.step()
        return torch.stack([norms, torch.linalg.vector_norm(self.weights, dim=1)])

    def copy(self) -> Kept:
        """Return a copy of all that a step changes."""
        return Kept(*(one.clone() for one in (self.weights, self.mean, self.square, self.steps)))

    @torch.no_grad()
    def restore(self, kept: Kept) -> None:
        """Set it again."""
        for mine, before in zip(
            (self.weights, self.mean, self.square, self.steps),
            (kept.weights, kept.mean, kept.square, kept.steps),
            strict=True,
        ):
            mine.copy_(before)
