"""Shows every picture and every prompt to an encoder, once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.evaluate.images import load_pixels
from limner.metrics.encoder import Features, ImageEncoder, TextImageEncoder

Progress = Callable[[int, int, str], None]
"""Called with how much is done, how much there is, and of what."""


@dataclass(frozen=True)
class Seen:
    """Everything one encoder saw: a feature vector for each picture and each text."""

    pictures: dict[Path, Tensor]
    texts: dict[str, Tensor]

    def rows(self, paths: Sequence[Path]) -> Features:
        """Return the pictures' features, row by row; no rows for no pictures."""
        if not paths:
            return torch.zeros(0, len(next(iter(self.pictures.values()))))
        return torch.stack([self.pictures[path] for path in paths])

    def text_rows(self, prompts: Sequence[str]) -> Features | None:
        """Return the prompts' features, row by row; None where the encoder reads no text."""
        return torch.stack([self.texts[prompt] for prompt in prompts]) if self.texts else None


def look(
    encoder: ImageEncoder, paths: Sequence[Path], prompts: Sequence[str], *, batch: int, progress: Progress
) -> Seen:
    """Encode each picture and, where the encoder reads text, each prompt.

    Equal pictures are encoded once: their features are equal to the last bit, whatever batch each would have been in.
    """
    content = {path: _content(load_pixels(path)) for path in dict.fromkeys(paths)}
    by_size: dict[torch.Size, list[Path]] = defaultdict(list)
    for (size, _), path in {content[path]: path for path in reversed(content)}.items():
        by_size[size].append(path)
    total = sum(len(group) for group in by_size.values())
    features: dict[tuple[torch.Size, str], Tensor] = {}
    for group in by_size.values():
        for start in range(0, len(group), batch):
            chunk = group[start : start + batch]
            pixels = torch.stack([load_pixels(path) for path in chunk])
            features.update(zip((content[path] for path in chunk), encoder(pixels), strict=True))
            progress(len(features), total, f"pictures seen by {encoder.name}")
    texts: dict[str, Tensor] = {}
    if isinstance(encoder, TextImageEncoder):
        unique = sorted(set(prompts))
        for start in range(0, len(unique), batch):
            chunk = unique[start : start + batch]
            texts.update(zip(chunk, encoder.encode_text(chunk), strict=True))
    return Seen({path: features[content[path]] for path in content}, texts)


def _content(pixels: Tensor) -> tuple[torch.Size, str]:
    """Return a picture's size and the hash of its pixels."""
    return pixels.shape, hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
