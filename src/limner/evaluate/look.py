"""Shows every picture and every prompt to an encoder, once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from limner.evaluate.images import load_mask, load_pixels
from limner.metrics.encoder import Features, ImageEncoder, PatchEncoder, TextImageEncoder
from limner.metrics.perceptual import Lpips
from limner.metrics.similarity import foreground_cosine

Progress = Callable[[int, int, str], None]
"""Called with how much is done, how much there is, and of what."""


@dataclass(frozen=True)
class Seen:
    """Everything one encoder saw: a feature vector for each picture and each text."""

    pictures: dict[Path, Tensor]
    texts: dict[str, Tensor]
    foregrounds: dict[Path, Tensor] = field(default_factory=dict[Path, Tensor])
    """How well each picture holds the foreground of each picture with a mask; empty where nothing was masked."""

    def rows(self, paths: Sequence[Path]) -> Features:
        """Return the pictures' features, row by row; no rows for no pictures."""
        if not paths:
            return torch.zeros(0, len(next(iter(self.pictures.values()))))
        return torch.stack([self.pictures[path] for path in paths])

    def text_rows(self, prompts: Sequence[str]) -> Features | None:
        """Return the prompts' features, row by row; None where the encoder reads no text."""
        return torch.stack([self.texts[prompt] for prompt in prompts]) if self.texts else None

    def foreground_rows(self, paths: Sequence[Path]) -> Tensor | None:
        """Return how well the pictures hold each foreground, row by row; None where nothing was masked."""
        return torch.stack([self.foregrounds[path] for path in paths]) if self.foregrounds else None


def look(
    encoder: ImageEncoder,
    paths: Sequence[Path],
    prompts: Sequence[str],
    *,
    masks: Mapping[Path, Path] | None = None,
    batch: int,
    progress: Progress,
) -> Seen:
    """Encode each picture and, where the encoder reads text, each prompt.

    `masks` has the mask of each picture that has one: an encoder that sees patches looks for what is inside. Equal
    pictures are encoded once: their features are equal to the last bit, whatever batch each would have been in.
    """
    content = {path: _content(load_pixels(path)) for path in dict.fromkeys(paths)}
    by_size: dict[torch.Size, list[Path]] = defaultdict(list)
    for (size, _), path in {content[path]: path for path in reversed(content)}.items():
        by_size[size].append(path)
    total = sum(len(group) for group in by_size.values())
    masked = _foregrounds(encoder, masks) if masks and isinstance(encoder, PatchEncoder) else []
    features: dict[tuple[torch.Size, str], Tensor] = {}
    foregrounds: dict[tuple[torch.Size, str], Tensor] = {}
    for group in by_size.values():
        for start in range(0, len(group), batch):
            chunk = group[start : start + batch]
            pixels = torch.stack([load_pixels(path) for path in chunk])
            names = [content[path] for path in chunk]
            if masked and isinstance(encoder, PatchEncoder):
                found, patches = encoder.see(pixels)
                foregrounds.update(zip(names, foreground_cosine(patches, masked), strict=True))
            else:
                found = encoder(pixels)
            features.update(zip(names, found, strict=True))
            progress(len(features), total, f"pictures seen by {encoder.name}")
    return Seen(
        {path: features[content[path]] for path in content},
        _read(encoder, prompts, batch) if isinstance(encoder, TextImageEncoder) else {},
        {path: foregrounds[content[path]] for path in content} if foregrounds else {},
    )


def look_apart(distance: Lpips, paths: Sequence[Path], groups: Sequence[Sequence[Path]], *, progress: Progress) -> Seen:
    """Take each picture's mean distance to the others of its group as what is seen of it; NaN for one alone."""
    found = {path: torch.full((1,), torch.nan) for path in paths}
    for done, group in enumerate(groups, start=1):
        pixels = {path: load_pixels(path)[None] for path in group}
        apart: dict[Path, list[Tensor]] = {path: [] for path in group}
        for a, b in combinations(group, 2):
            value = distance(pixels[a], pixels[b])
            apart[a].append(value)
            apart[b].append(value)
        found |= {path: torch.stack(values).mean(0) for path, values in apart.items() if values}
        progress(done, len(groups), f"prompts seen by {distance.name}")
    return Seen(found, {})


def _read(encoder: TextImageEncoder, prompts: Sequence[str], batch: int) -> dict[str, Tensor]:
    texts: dict[str, Tensor] = {}
    unique = sorted(set(prompts))
    for start in range(0, len(unique), batch):
        chunk = unique[start : start + batch]
        texts.update(zip(chunk, encoder.encode_text(chunk), strict=True))
    return texts


def _foregrounds(encoder: PatchEncoder, masks: Mapping[Path, Path]) -> list[Tensor]:
    """Return the features of each masked picture's patches that lie inside for the most part, or of the one nearest."""
    found = []
    for path, mask in masks.items():
        patches = encoder.see(load_pixels(path)[None])[1][0]
        inside = encoder.cells(load_mask(mask)[None])[0]
        found.append(patches[inside >= min(0.5, float(inside.max()))])
    return found


def _content(pixels: Tensor) -> tuple[torch.Size, str]:
    """Return a picture's size and the hash of its pixels."""
    return pixels.shape, hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
