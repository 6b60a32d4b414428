"""The rows of a pass: the batches of several slots side by side on the device, in tensors of a fixed shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.machine import to_device
from limner.types import Batch, Conditioning, Moments


@dataclass(frozen=True)
class Rows:
    """All that a pass reads of its batches; row block i is slot i's."""

    moments: Moments
    """Of every row of every slot, float32."""
    conditioning: Conditioning
    """Of the rows that this process computes, as all fields below but `weight` and `instances`."""
    weight: Float[Tensor, "slots each"]
    """How much each row of every slot counts."""
    instances: Float[Tensor, " slots"]
    """How many of a slot's rows are of its subject."""
    mask: Float[Tensor, "own 1 rows columns"] | None
    """Weight of each latent pixel in [0, 1]; None where every pixel counts."""
    taught: Bool[Tensor, " own"] | None
    """Which rows learn from the base; None where none does."""
    places: Int[Tensor, " taught"] | None
    """Where these rows are; None where all are such, or none is."""
    own: tuple[int, ...] | None
    """The rows that this process computes; None where it computes all."""
    captions: tuple[str, ...]
    """What the conditioning of its rows was made of."""

    @staticmethod
    def of(batches: Sequence[Batch], taught: Sequence[bool], *, own: Sequence[int] | None, dtype: torch.dtype) -> Rows:
        """Lay batches of one shape side by side where they are; `taught` and `own` are about their rows in order."""
        chosen = range(len(taught)) if own is None else own
        told = Conditioning.cat([b.conditioning for b in batches])
        told = told if own is None else told.select(own)
        masks = [torch.ones_like(b.moments[:, 0, :1]) if b.mask is None else b.mask for b in batches]
        mask = None if all(b.mask is None for b in batches) else torch.cat(masks)[list(chosen)]
        is_taught = [taught[row] for row in chosen]
        places = [place for place, one in enumerate(is_taught) if one]
        captions = [caption for b in batches for caption in b.captions]
        return Rows(
            moments=torch.cat([b.moments.float() for b in batches]),
            conditioning=told.to(told.hidden.device, dtype),
            weight=torch.stack([b.weight for b in batches]).float(),
            instances=torch.tensor([float(b.is_prior.count(False)) for b in batches]),
            mask=mask,
            taught=torch.tensor(is_taught) if places else None,
            places=torch.tensor(places) if 0 < len(places) < len(is_taught) else None,
            own=None if own is None else tuple(own),
            captions=tuple(captions[row] for row in chosen) if captions else (),
        )

    def per_slot(self, losses: Float[Tensor, "slots each"]) -> Float[Tensor, " slots"]:
        """Return each slot's loss: the weighted sum of its rows' over the number of its instance rows."""
        return (self.weight * losses).sum(1) / self.instances

    def on(self, device: torch.device) -> Rows:
        """Return the same on another device, without waiting for it."""
        return self._mapped(lambda tensor: to_device(tensor, device))

    def copied(self) -> Rows:
        """Return the same in memory of their own."""
        return self._mapped(Tensor.clone)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Rows:
        made = {name: change(tensor) for name, tensor in self._own_tensors().items()}
        told = self.conditioning
        pooled, time_ids = (None if t is None else change(t) for t in (told.pooled, told.time_ids))
        return replace(self, conditioning=Conditioning(change(told.hidden), pooled, time_ids), **made)

    def _own_tensors(self) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name; what is None is not among them."""
        told = self.conditioning
        about = {"hidden": told.hidden, "pooled": told.pooled, "time_ids": told.time_ids}
        return {**self._own_tensors(), **{name: tensor for name, tensor in about.items() if tensor is not None}}

    @property
    def shape(self) -> tuple[Any, ...]:
        """Return what decides which work is done with them: names, shapes and number formats of all tensors."""
        return tuple((name, tensor.shape, tensor.dtype) for name, tensor in self.tensors().items())

    def fill(self, other: Rows) -> None:
        """Take the values of rows of the same shape, without waiting for the device."""
        for mine, new in zip(self.tensors().values(), other.tensors().values(), strict=True):
            mine.copy_(to_device(new, mine.device))
