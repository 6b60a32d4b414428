"""The shapes that travel between the parts: pixels, moments, latents, conditioning, batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pixels = Float[Tensor, "batch 3 height width"]
"""Pictures with values in [-1, 1]."""
Moments = Float[Tensor, "batch 2 channels rows columns"]
"""Mean and standard deviation of the VAE's posterior, unscaled: what the cache stores."""
Latents = Float[Tensor, "batch channels rows columns"]
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
        """Return the same conditioning on another device and in another dtype; sizes stay exact, in float32."""
        time_ids = None if self.time_ids is None else self.time_ids.to(device)
        return replace(self._map(lambda t: t.to(device=device, dtype=dtype)), time_ids=time_ids)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Stack conditionings row-wise; all must have the same fields and widths."""
        return Conditioning(
            torch.cat([part.hidden for part in parts]),
            _cat_present([part.pooled for part in parts]),
            _cat_present([part.time_ids for part in parts]),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        pooled, time_ids = (None if field is None else change(field) for field in (self.pooled, self.time_ids))
        return Conditioning(change(self.hidden), pooled, time_ids)


def _cat_present(fields: Sequence[Tensor | None]) -> Tensor | None:
    present = [field for field in fields if field is not None]
    if present and len(present) < len(fields):
        raise ValueError(f"{len(fields) - len(present)} of {len(fields)} conditionings lack a field that others have")
    return torch.cat(present) if present else None


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
    mask: Float[Tensor, "batch 1 rows columns"] | None = None
    """Weight of each latent pixel in [0, 1]; None where every pixel counts."""
    captions: tuple[str, ...] = ()
    """What each row's conditioning was made of: for adapters that learn inside the text encoder."""


@runtime_checkable
class Source(Protocol):
    """Where examples come from: a pure function of the number of the batch and the seed."""

    def batch(self, step: int, *, seed: int) -> Batch: ...
