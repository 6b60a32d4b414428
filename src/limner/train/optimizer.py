"""The optimizer of one slot and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from limner.spec import Spec


class AdamW(Spec):
    """Adam with decoupled weight decay (arXiv:1711.05101), torch's own."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    """Pulls weights towards zero by this share of the learning rate each step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of the gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of the squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up: constant, or falling to zero linearly or along a cosine."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients of a slot longer than this are scaled down to it; 0 is off."""

    def build(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimizer over one slot's parameters."""
        return torch.optim.AdamW(
            list(parameters),
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
        )

    def factor(self, step: int, steps: int) -> float:
        """Return the multiple of the learning rate at `step` (counted from 1) of `steps`."""
        if step <= self.warmup_steps:
            return step / (self.warmup_steps + 1)
        progress = (step - 1 - self.warmup_steps) / max(1, steps - self.warmup_steps)
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0
