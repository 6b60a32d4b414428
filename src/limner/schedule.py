"""The noise schedule's algebra: add noise, the target of each prediction type, SNR and its loss weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limner.types import Latents, PerExample, Timesteps

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Schedule:
    """Discrete diffusion: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with a_t = `alphas_cumprod[t]` in (0, 1]."""

    alphas_cumprod: Float[Tensor, " train_timesteps"]
    prediction_type: PredictionType

    def rescaled(self) -> Schedule:
        """Return the schedule shifted and stretched so that its last step holds no signal. arXiv:2305.08891 Alg. 1."""
        root = self.alphas_cumprod.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return replace(self, alphas_cumprod=root.square())

    def on(self, device: torch.device) -> Schedule:
        """Return the schedule with its numbers on a device, so that none of its formulas fetches them there."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    @property
    def num_train_timesteps(self) -> int:
        return self.alphas_cumprod.shape[0]

    def coefficients(self, t: Timesteps, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(a_t) and sqrt(1 - a_t), shaped to multiply `like` row by row."""
        a = self.alphas_cumprod.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, x_0: Latents, noise: Latents, t: Timesteps) -> Latents:
        """Return x_t. arXiv:2006.11239 Eq. 4."""
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * x_0 + sigma * noise

    def target(self, x_0: Latents, noise: Latents, t: Timesteps) -> Latents:
        """Return what the UNet should predict: noise, x_0, or v = alpha noise - sigma x_0 (arXiv:2202.00512 App. D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x_0
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * noise - sigma * x_0

    def predicted_x_0(self, prediction: Latents, x_t: Latents, t: Timesteps) -> Latents:
        """Return the clean latents that a prediction implies (the inverse of `target`)."""
        if self.prediction_type == "sample":
            return prediction
        alpha, sigma = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * prediction) / alpha
        return alpha * x_t - sigma * prediction

    def ddim_step(self, prediction: Latents, x_t: Latents, t: Timesteps, earlier: Timesteps) -> Latents:
        """Return the latents at a less noisy timestep, without fresh noise. arXiv:2010.02502 Eq. 12, sigma 0."""
        alpha, sigma = self.coefficients(t, x_t)
        x_0 = self.predicted_x_0(prediction, x_t, t)
        noise = (x_t - alpha * x_0) / sigma
        alpha, sigma = self.coefficients(earlier, x_t)
        return alpha * x_0 + sigma * noise

    def snr(self, t: Timesteps) -> PerExample:
        """Return the signal-to-noise ratio a_t / (1 - a_t)."""
        a = self.alphas_cumprod.to(t.device)[t]
        return a / (1 - a)

    def min_snr_weight(self, t: Timesteps, gamma: float) -> PerExample:
        """Return the min-SNR-gamma weight of each row's squared error, in the space of the prediction.

        arXiv:2303.09556 Eq. 5 weighs the x_0-error by min(snr, gamma). The epsilon-error is snr times the
        x_0-error and the v-error (snr + 1) times, so their weights are divided by those.
        """
        snr = self.snr(t)
        clipped = torch.clamp(snr, max=gamma)
        if self.prediction_type == "epsilon":
            return clipped / snr
        if self.prediction_type == "v_prediction":
            return clipped / (snr + 1)
        return clipped
