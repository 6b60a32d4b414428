"""Notices that steps became much slower because memory spills: into swap, or from a GPU into the system's memory."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import torch

from limner.machine import swapped_bytes

GIB = 2**30
SLOWER = 5.0
"""So many times the usual step is a sign of spilling, if it is so often in a row."""
IN_A_ROW = 3
USUAL_OF = 10
"""The usual step is the median of so many first ones."""
SPILLED = 0.1 * GIB
"""Less than this in swap is the system tidying up."""


@dataclass
class Spilling:
    """Is told every step's seconds, and says once what is wrong."""

    at_once: bool = False
    """Whether spilled memory is a reason by itself: on a GPU it is, while a system swaps what is not in use."""
    usual: list[float] = field(default_factory=list[float])
    slow: list[float] = field(default_factory=list[float])
    said: bool = False

    def note(self, seconds: float, spilled_bytes: int) -> str | None:
        """Return the line to say, once, when steps are slow time and again; how much is spilled is in it."""
        if self.said:
            return None
        slower = ""
        if len(self.usual) < USUAL_OF:
            self.usual.append(seconds)
        else:
            pace = statistics.median(self.usual)
            self.slow = [*self.slow, seconds] if seconds > SLOWER * pace else []
            slower = f"steps became {statistics.median(self.slow) / pace:.0f}x slower" if self.slow else ""
        is_spilled = spilled_bytes > SPILLED
        if len(self.slow) < IN_A_ROW and not (self.at_once and is_spilled):
            return None
        self.said = True
        if is_spilled:
            also = f"{slower} and " if slower else ""
            return (
                f"{also}{spilled_bytes / GIB:.1f} GiB do not fit into memory: they are in swap, or in the "
                "system's memory instead of the GPU's. Stop and start again with fit=true, or with a smaller batch or "
                "rank; on Windows turn off 'CUDA Sysmem Fallback' in the NVIDIA panel."
            )
        return f"{slower}, and nothing is swapped: something else on this machine takes its time."


def spilled_bytes(device: torch.device) -> int:
    """Return how much of this process does not lie in the memory it was meant for."""
    if device.type != "cuda":
        return swapped_bytes()
    return max(0, torch.cuda.memory_reserved(device) - torch.cuda.get_device_properties(device).total_memory)
