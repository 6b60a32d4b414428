"""Reads what stage `pictures` wrote: pixels as a memory map, attributes and captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """One part of the data set: uint8 pixels (n, px, px, 3) and as many attribute records."""

    pixels: np.ndarray
    records: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: Any) -> Tensor:
        """Return pixels (batch, 3, px, px) in [-1, 1]."""
        chosen = torch.from_numpy(self.pixels[np.asarray(indices)])
        return chosen.permute(0, 3, 1, 2).float() / 127.5 - 1


def load_parts(work: Path, name: str) -> Tensor:
    """Return where each picture shows each part of `world.ROLES`, (n, 3, 16, 16) in [0, 1]."""
    return torch.from_numpy(np.load(work / "pictures" / f"{name}_parts.npy")).float() / 255


def load(work: Path, name: str) -> Pictures:
    """Load one part: `train`, `held_out` or `style_NOUN`."""
    folder = work / "pictures"
    if not (folder / f"{name}.jsonl").exists():
        raise SystemExit(f"{folder}/{name}.jsonl is missing. Run the stage `pictures` first.")
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    pixels = np.load(folder / f"{name}.npy", mmap_mode="r")
    return Pictures(pixels, [json.loads(line) for line in lines])
