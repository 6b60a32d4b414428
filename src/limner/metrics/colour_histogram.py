"""The colour histogram: the baseline that a learned encoder has to beat before its word counts."""

from __future__ import annotations

import hashlib

import torch

from limner.metrics.encoder import Features, ImageEncoder
from limner.types import Pixels


class ColourHistogram(ImageEncoder):
    """Share of the picture's pixels in each of 4 x 4 x 4 cells of the RGB cube, square-rooted.

    The square root makes the cosine of two histograms their Bhattacharyya coefficient.
    """

    name = "colour_histogram"
    about = (
        "Colour histogram, 4 x 4 x 4 cells of the RGB cube: knows colours and nothing else. It stands beside every "
        "learned encoder as a baseline: what it sees too may be colour alone."
    )
    bins = 4

    def __init__(self) -> None:
        self.identity = hashlib.sha256(b"colour_histogram rgb 4x4x4 sqrt").hexdigest()[:16]

    def __call__(self, pixels: Pixels) -> Features:
        """Return the square root of each picture's histogram; `pixels` in [-1, 1]."""
        cells = ((pixels.float().cpu() + 1) / 2 * self.bins).floor().clamp(0, self.bins - 1).long()
        red, green, blue = cells.flatten(2).unbind(1)
        cell = (red * self.bins + green) * self.bins + blue
        counts = torch.zeros(len(pixels), self.bins**3).scatter_add_(1, cell, torch.ones(cell.shape))
        return (counts / cell.shape[1]).sqrt()
