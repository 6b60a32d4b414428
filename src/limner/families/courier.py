"""Weights that lie on the host, brought to the device one layer after the other, the next while one computes."""

from __future__ import annotations

import weakref
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Brought = tuple[Tensor, ...]


@runtime_checkable
class Held(Protocol):
    """A layer's weight as it lies on the host."""

    @property
    def tensors(self) -> Brought: ...


class Courier:
    """Brings layers' weights from the host to one device, and remembers which came after which.

    The layer that came next the last time is brought, on a GPU over a stream of its own, while one computes. So at most
    two layers' weights are on the device: that of the one that acts, and the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last_two: tuple[int, int] = (0, 0)
        self._after: dict[tuple[int, int], weakref.ref[Held]] = {}
        self._under_way: tuple[Held, Brought] | None = None

    def home(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the host, from where a GPU can fetch it by itself."""
        if self.device.type == "meta":  # a plan's
            return tensor
        tensor = tensor.to("cpu")
        return tensor.pin_memory() if self._stream else tensor

    def bring(self, held: Held) -> Brought:
        """Return copies of a layer's tensors on the device, and begin to bring those of the layer after it."""
        coming, self._under_way = self._under_way, None
        brought = coming[1] if coming and coming[0] is held else self._copy(held)
        del coming
        if self._stream:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in brought:
                tensor.record_stream(current)
        self._after[self._last_two] = weakref.ref(held)
        self._last_two = (self._last_two[1], id(held))
        known = self._after.get(self._last_two)
        following = known() if known else None
        if following is not None:
            self._under_way = following, self._copy(following)
        return brought

    def _copy(self, held: Held) -> Brought:
        if self._stream is None:
            return tuple(tensor.to(self.device, copy=True) for tensor in held.tensors)
        with torch.cuda.stream(self._stream):
            return tuple(tensor.to(self.device, non_blocking=True) for tensor in held.tensors)
