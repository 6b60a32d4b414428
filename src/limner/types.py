"""The shapes that travel between the parts: pixels, moments, latents, conditioning, batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pixels = Float[Tensor, "batch 3 height width"]
"""Pictures with values in [-1, 1]."""
Moments = Float[Tensor, "batch 2 channels height width"]
"""Mean and standard deviation of the VAE's posterior, unscaled: what the cache stores."""
Latents = Float[Tensor, "batch channels height width"]
"""A draw from the moments, scaled to about unit variance: what the UNet sees."""
Timesteps = Int[Tensor, " batch"]
"""Training timesteps in [0, 1000)."""
PerExample = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told besides the noisy latents: one row per picture."""

    hidden: Float[Tensor, "batch tokens width"]
    """Hidden states of the text encoder(s), for cross-attention."""
    pooled: Float[Tensor, "batch pooled_width"] | None = None
    """Pooled text embedding (SDXL)."""
    time_ids: Float[Tensor, "batch ids"] | None = None
    """Original size, crop and target size or aesthetic score (SDXL)."""

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def select(self, rows: Sequence[int] | Tensor) -> Conditioning:
        """Return the given rows, in the given order."""
        index = torch.as_tensor(rows, device=self.hidden.device)
        return self._map(lambda t: t[index])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Conditioning:
        """Return the same conditioning on another device and in another dtype."""
        return self._map(lambda t: t.to(device=device, dtype=dtype))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Stack conditionings row-wise; all must have the same fields and widths."""
        join = {name: [getattr(p, name) for p in parts] for name in ("hidden", "pooled", "time_ids")}
        return Conditioning(**{k: None if v[0] is None else torch.cat(v) for k, v in join.items()})

    def _map(self, change) -> Conditioning:
        fields = (self.hidden, self.pooled, self.time_ids)
        return Conditioning(*(None if t is None else change(t) for t in fields))


@dataclass(frozen=True)
class Batch:
    """The examples of one step of one slot: instance pictures first, then the prior's class pictures."""

    ids: tuple[str, ...]
    """Name of each row's picture, for messages."""
    moments: Moments
    conditioning: Conditioning
    weight: PerExample
    """1 for an instance picture, the prior's weight for a class picture."""
    is_prior: tuple[bool, ...]
    mask: Float[Tensor, "batch 1 height width"] | None = None
    """Weight of each latent pixel in [0, 1]; None where every pixel counts."""
    captions: tuple[str, ...] = ()
    """What each row's conditioning was made of: for adapters that learn inside the text encoder."""
