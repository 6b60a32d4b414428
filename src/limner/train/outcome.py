"""What came of a step for each slot, on the host: everything is asked of the device in two answers, for all slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limner.train.passes import Passed
from limner.train.update import Update


@dataclass(frozen=True)
class Outcome:
    """What one slot did in one step."""

    loss: float
    """Mean of its passes' losses."""
    losses: Float[Tensor, " rows"]
    """Of all rows of all passes, on the host."""
    timesteps: tuple[int, ...]
    """Of the same rows."""
    grad_norm: float
    """Before clipping."""
    weight_norm: float
    """After the step."""
    applied: bool
    """Whether its weights were updated: loss and gradient were finite."""
    overflowed: bool = False
    """Whether it was not applied because float16's loss scale was too large, which it is no longer."""


def settle(updates: Sequence[Update], passed: Sequence[Sequence[Passed]], steps: Sequence[int]) -> list[Outcome]:
    """Clip and apply the gradients that the passes of a step left, unless they are not finite; return what came of it.

    `steps` is for each slot the number of the step, counted from 1.
    """
    if not updates:  # every slot has come to its end
        return []
    norms = [update.clip() for update in updates]
    told = _on_host([_packed(own, norm) for own, norm in zip(passed, norms, strict=True)])
    applied: list[bool] = []
    overflowed: list[bool] = []
    for update, step, numbers in zip(updates, steps, told, strict=True):
        loss, norm = numbers[-2:].tolist()
        applied.append(math.isfinite(loss) and math.isfinite(norm))  # a broken slot's gradient may be zero
        overflowed.append(not applied[-1] and math.isfinite(loss) and update.scale.overflowed())
        if applied[-1]:
            update.scale.passed()
            update.apply(step)
    weight_norms = torch.stack([update.weight_norm() for update in updates]).tolist()
    return [
        unpacked(numbers, weight_norm=weight_norms[i], applied=applied[i], overflowed=overflowed[i])
        for i, numbers in enumerate(told)
    ]


def _packed(passed: Sequence[Passed], norm: Tensor) -> Float[Tensor, " numbers"]:
    """Return what is told of a slot in one tensor: losses and timesteps of all rows, their mean loss, the norm."""
    losses = [p.losses for p in passed]
    loss = torch.stack([p.loss for p in passed]).mean()
    timesteps = [p.timesteps.to(loss) for p in passed]
    return torch.cat([*losses, *timesteps, torch.stack([loss, norm.to(loss)])])


def _on_host(packed: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors on the host, fetched at once."""
    return torch.cat([*packed]).cpu().split([len(one) for one in packed])


def unpacked(numbers: Float[Tensor, " numbers"], *, weight_norm: float, applied: bool, overflowed: bool) -> Outcome:
    """Return what a slot's packed numbers say, which are on the host."""
    rows = len(numbers) // 2 - 1
    loss, norm = numbers[-2:].tolist()
    return Outcome(
        loss=loss,
        losses=numbers[:rows],
        timesteps=tuple(int(t) for t in numbers[rows:-2].tolist()),
        grad_norm=norm,
        weight_norm=weight_norm,
        applied=applied,
        overflowed=overflowed,
    )
