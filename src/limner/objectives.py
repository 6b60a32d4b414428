"""What is minimised for one batch: one loss per example, from which the loop makes each slot's mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field, field_validator
from torch import Tensor

from limner.schedule import Schedule
from limner.spec import Spec
from limner.types import Latents, PerExample, Timesteps

Predict = Callable[[Latents, Timesteps], Tensor]
"""The UNet with the batch's conditioning filled in: (x_t, t) -> prediction."""


class Denoising(Spec):
    """Predict the noise (or v, or x_0, as the base does) that was added to the latents."""

    kind: Literal["denoising"] = "denoising"
    snr_gamma: float = Field(default=5.0, ge=0)
    """Min-SNR weighting: caps the weight of nearly clean timesteps (arXiv:2303.09556). 0 is off: all weigh alike."""
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    """Adds this much of a constant per channel to the noise, for darker and brighter pictures; 0 is off, 0.05 usual."""
    timesteps: Literal["uniform", "logit_normal", "high_noise"] = "uniform"
    """Which timesteps are trained how often: all alike; the middle most (arXiv:2403.03206); or mostly noisy ones, where
    composition and style are decided (1 - u^3)."""
    timestep_range: tuple[float, float] | None = None
    """Train only this part of the noise, from clean 0 to pure noise 1. None takes what the base is made for: all of it,
    [0, 1]; of SDXL's refiner [0, 0.2]."""
    prediction_type: Literal["base", "epsilon", "v_prediction"] = "base"
    """What the UNet predicts: what the base does, or another that it has to learn (only with adapter.kind=full)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is pure noise (arXiv:2305.08891); needs v-prediction."""

    @field_validator("timestep_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is None:
            return value
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError(f"must be two numbers 0 <= from < to <= 1, not {list(value)}")
        if value[1] - value[0] < 0.002:
            raise ValueError(f"holds no timestep; {list(value)} must be 0.002 wide or more")
        return value

    @property
    def trained(self) -> tuple[float, float]:
        """Return the part of the noise that is trained, from clean 0 to pure noise 1."""
        return self.timestep_range or (0.0, 1.0)

    def draw_timesteps(self, rows: int, num_train_timesteps: int, draws: torch.Generator) -> Timesteps:
        """Return a training timestep per row."""
        low, high = (round(edge * num_train_timesteps) for edge in self.trained)
        if self.timesteps == "uniform":
            return torch.randint(low, high, (rows,), generator=draws)
        if self.timesteps == "logit_normal":
            u = torch.randn(rows, generator=draws).sigmoid()
        else:
            u = 1 - torch.rand(rows, generator=draws) ** 3
        return (low + u * (high - low)).long().clamp(max=high - 1)

    def losses(
        self,
        predict: Predict,
        x_0: Latents,
        schedule: Schedule,
        *,
        draws: Sequence[torch.Generator],
        own: Sequence[int] | None = None,
        mask: Tensor | None = None,
        teacher: Predict | None = None,
        taught: Bool[Tensor, " batch"] | None = None,
    ) -> PerExample:
        """Return the loss of each row; rows are equal blocks, one per slot, each with a generator in `draws`.

        Draws are made for every row of `x_0`; with `own` only the losses of those rows are computed, and `predict`,
        `mask`, `teacher` and `taught` are about them. Rows that are `taught` have as their target what `teacher` (the
        untouched base) predicts for all rows, instead of what was added.
        """
        rows = x_0.shape[0] // len(draws)
        noise = torch.cat([torch.randn(rows, *x_0.shape[1:], generator=g) for g in draws])
        t = torch.cat([self.draw_timesteps(rows, schedule.num_train_timesteps, g) for g in draws])
        if self.noise_offset:
            offset = torch.cat([torch.randn(rows, x_0.shape[1], 1, 1, generator=g) for g in draws])
            noise = noise + self.noise_offset * offset
        noise, t = noise.to(x_0), t.to(x_0.device)
        if own is not None:
            x_0, noise, t = x_0[own], noise[own], t[own]
        x_t, target = schedule.add_noise(x_0, noise, t), schedule.target(x_0, noise, t)
        if teacher is not None and taught is not None:
            with torch.no_grad():
                target = torch.where(taught.view(-1, 1, 1, 1), teacher(x_t, t).to(target), target)
        squared = (predict(x_t, t).float() - target).square()
        if mask is not None:
            # the mask weighs latents; dividing by its mean keeps a small subject's loss on the scale of a whole picture
            squared = squared * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
        losses = squared.mean(dim=(1, 2, 3))
        if self.snr_gamma:
            losses = losses * schedule.min_snr_weight(t, self.snr_gamma)
        return losses
