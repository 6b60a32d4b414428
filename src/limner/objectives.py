"""What is minimised for one batch: one loss per example, from which the loop makes each slot's mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
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

    def losses(
        self,
        predict: Predict,
        x_0: Latents,
        schedule: Schedule,
        *,
        draws: Sequence[torch.Generator],
        mask: Tensor | None = None,
    ) -> PerExample:
        """Return the loss of each row; rows are equal blocks, one per slot, each with a generator in `draws`."""
        rows = x_0.shape[0] // len(draws)
        noise = torch.cat([torch.randn(rows, *x_0.shape[1:], generator=g) for g in draws])
        t = torch.cat([torch.randint(schedule.num_train_timesteps, (rows,), generator=g) for g in draws])
        if self.noise_offset:
            offset = torch.cat([torch.randn(rows, x_0.shape[1], 1, 1, generator=g) for g in draws])
            noise = noise + self.noise_offset * offset
        noise, t = noise.to(x_0), t.to(x_0.device)
        prediction = predict(schedule.add_noise(x_0, noise, t), t).float()
        squared = (prediction - schedule.target(x_0, noise, t)).square()
        if mask is not None:
            # the mask weighs latents; dividing by its mean keeps a small subject's loss on the scale of a whole picture
            squared = squared * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
        losses = squared.mean(dim=(1, 2, 3))
        if self.snr_gamma:
            losses = losses * schedule.min_snr_weight(t, self.snr_gamma)
        return losses
