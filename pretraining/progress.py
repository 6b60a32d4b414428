"""Resumable training: device, atomic checkpoints every two minutes, time as the training clock."""

from __future__ import annotations

import math
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY_S = 120.0


def device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> AbstractContextManager[None]:
    """Return the bfloat16 autocast of the device."""
    return torch.autocast(device().type, torch.bfloat16)


def set_threads() -> None:
    """Use two threads, or LIMNER_THREADS, so that other work on the machine stays alive."""
    torch.set_num_threads(int(os.environ.get("LIMNER_THREADS", "2")))


def write_atomically(path: Path, state: dict[str, Any]) -> None:
    """Save `state` so that an interruption leaves the old file or the new one."""
    temporary = path.with_suffix(".writing")
    torch.save(state, temporary)
    temporary.replace(path)


def _now() -> float:
    """Return seconds of a GPU's time, or of each CPU thread's own: other work on the processor takes none of it."""
    return time.monotonic() if device().type == "cuda" else time.process_time() / torch.get_num_threads()


class Clock:
    """Counts training seconds over all sittings and says when to save, log and stop."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.limit_s = path, minutes * 60
        self.trained_s, self.step, self.examples = 0.0, 0, 0
        self.state: dict[str, Any] = {}
        if path.exists():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.trained_s, self.step = saved["trained_s"], saved["step"]
            self.examples, self.state = saved["examples"], saved["state"]
        self._last, self._saved = _now(), time.monotonic()

    @property
    def fraction(self) -> float:
        """Fraction of the training time that is over, in [0, 1]."""
        return min(1.0, self.trained_s / self.limit_s)

    @property
    def over(self) -> bool:
        """Whether the training time is used up."""
        return self.trained_s >= self.limit_s

    def tick(self, examples: int) -> bool:
        """Count one step; return whether a checkpoint is due."""
        now = _now()
        self.trained_s += now - self._last
        self._last = now
        self.step += 1
        self.examples += examples
        return self.over or time.monotonic() - self._saved > SAVE_EVERY_S

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint and keep the time that this took out of the training time."""
        counters = {"trained_s": self.trained_s, "step": self.step, "examples": self.examples}
        write_atomically(self.path, counters | {"state": state})
        self._last, self._saved = _now(), time.monotonic()

    def log(self, **values: float) -> None:
        """Print one line of progress."""
        text = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{self.trained_s:7.0f} s  step {self.step}  examples {self.examples}  {text}",
              flush=True)  # fmt: skip

    def pause(self) -> None:
        """Restart the step's stopwatch after work that is no training."""
        self._last = _now()


def warm_cosine(clock: Clock, peak: float, warm_steps: int = 100, floor: float = 0.02) -> float:
    """Return the learning rate: linear warm-up in steps, cosine over the training time."""
    cosine = 0.5 * (1 + math.cos(math.pi * clock.fraction))
    return peak * min(1.0, (clock.step + 1) / warm_steps) * (floor + (1 - floor) * cosine)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times its scale where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
