"""The seconds that each part of drawing takes: reading the prompts, denoising, decoding."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Part = Literal["text", "denoise", "decode"]


class Clock:
    """Adds up the seconds of each part; a device that computes on its own is waited for at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[Part, float] = {"text": 0.0, "denoise": 0.0, "decode": 0.0}

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count what this block takes to a part."""
        started = self.now()
        yield
        self.seconds[name] += self.now() - started

    def now(self) -> float:
        """Return the seconds of a clock that only goes on, once the device has done what it was asked for."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()
