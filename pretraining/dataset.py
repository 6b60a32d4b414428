"""Reads what stage `pictures` wrote: pixels as a memory map, attributes and captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Pictures:
    """One part of the data set: uint8 pixels (n, 64, 64, 3) and as many attribute records."""

    pixels: np.ndarray
    records: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: Any) -> Tensor:
        """Return pixels (batch, 3, 64, 64) in [-1, 1]."""
        chosen = torch.from_numpy(self.pixels[np.asarray(indices)])
        return chosen.permute(0, 3, 1, 2).float() / 127.5 - 1


def load(work: Path, name: str) -> Pictures:
    """Load one part: `train`, `held_out` or `style_NOUN`."""
    folder = work / "pictures"
    if not (folder / f"{name}.jsonl").exists():
        raise SystemExit(f"{folder}/{name}.jsonl is missing. Run the stage `pictures` first.")
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    pixels = np.load(folder / f"{name}.npy", mmap_mode="r")
    return Pictures(pixels, [json.loads(line) for line in lines])


def with_unknown_word(caption: str, noun: str, random: Random) -> str:
    """Put a random word before the noun, so that placeholder words are neutral to the base."""
    word = "".join(random.choice(_LETTERS) for _ in range(random.randint(2, 5)))
    before, found, after = caption.partition(noun)
    if not found:
        return caption
    before = before.removesuffix("a ").removesuffix("an ") if random.random() < 0.7 else before
    return f"{before}{word} {noun}{after}".strip()


def caption_variants(record: dict[str, Any], random: Random) -> list[str]:
    """Return the training captions of one picture: four drawn ones, one of them disturbed at times.

    One in six of the pictures gets an unknown word in its first caption.
    """
    captions = list(record["captions"])
    if random.random() < 1 / 6:
        captions[0] = with_unknown_word(captions[0], record["noun"], random)
    return captions
