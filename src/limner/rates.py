"""How fast a device computes and moves bytes, measured in a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

AROUND = 4
"""A kernel within a model costs so many times what it costs alone: modules, hooks, autograd; roughly."""
ROUNDS = 3
"""The best of so many counts: what else runs on the machine only slows a round down."""
CALLS = 50
CHANNELS, SIDE = 320, 32
MOVED = 2**22
"""Numbers that are moved for the speed of memory: 16 MiB, more than caches hold."""


@dataclass(frozen=True)
class Rates:
    """Speeds of a device for one number format."""

    flops: float
    """Operations per second of convolutions and matrix products."""
    bytes: float
    """Bytes per second, read and written, of what only moves them."""
    kernel_s: float
    """Seconds that it takes to start a kernel."""

    def seconds(self, flops: int, moved_bytes: int, kernels: int) -> float:
        """Return about how long so much work takes."""
        return flops / self.flops + moved_bytes / self.bytes + kernels * self.kernel_s


@torch.no_grad()
def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Run a convolution, a matrix product, a copy and very small kernels, and take their times."""
    x = torch.ones(1, CHANNELS, SIDE, SIDE, device=device, dtype=dtype)
    kernel = torch.ones(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
    rows, weight = x.flatten(2).transpose(1, 2), kernel[:, :, 0, 0].repeat(4, 1)
    numbers, one = torch.ones(MOVED, device=device), torch.ones(1, device=device)

    def compute() -> None:
        F.conv2d(x, kernel, padding=1)
        F.linear(rows, weight)

    def start() -> None:
        for _ in range(CALLS):
            one.add(1)

    operations = 2 * SIDE**2 * CHANNELS**2 * (9 + 4)
    return Rates(
        flops=operations / _best(compute, device),
        bytes=2 * numbers.nbytes / _best(lambda: numbers.mul(2), device),
        kernel_s=AROUND * _best(start, device) / CALLS,
    )


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest round."""
    found = []
    for _ in range(ROUNDS + 1):  # the first one warms up
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])
