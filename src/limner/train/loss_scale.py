"""Loss scaling: float16 loses small gradients, so the loss is multiplied before the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GOOD_STEPS = 2000
"""So many steps in a row with finite gradients double the scale."""


@dataclass
class LossScale:
    """A power of two, as large as the gradients allow; 1 where `limit` is 1, which is off."""

    factor: float = 1.0
    limit: float = 1.0
    good_steps: int = 0

    @staticmethod
    def of(dtype: torch.dtype) -> LossScale:
        """Return the scale to begin with for a base of this number format."""
        return LossScale(2.0**16, limit=2.0**24) if dtype == torch.float16 else LossScale()

    def passed(self) -> None:
        """Note a step whose gradient was finite."""
        self.good_steps += 1
        if self.good_steps == GOOD_STEPS:
            self.factor, self.good_steps = min(2 * self.factor, self.limit), 0

    def overflowed(self) -> bool:
        """Note a gradient that was not finite; return whether a smaller scale may mend it."""
        self.good_steps = 0
        if self.factor <= 1:
            return False
        self.factor /= 2
        return True
