"""The average of the weights over the steps (EMA): calmer than the weights themselves, and often the better picture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from limner.spec import Spec


class Ema(Spec):
    """Exponential moving average of what learns; previews, comparison and the saved file use it."""

    decay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the average that each step keeps: 0 is off; 0.99 averages over about 100 steps, 0.999 over 1000."""


class Average:
    """The moving average of one slot's parameters, by name."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the weights after `step` (counted from 1); at the beginning the average is short."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)([*self.values.values()], [p.detach() for p in self.parameters.values()], step)
