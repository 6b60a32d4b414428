"""The gradient of the luminance: what a picture has of edges, texture and grain, and nothing of what it shows."""

from __future__ import annotations

import hashlib

import torch

from limner.metrics.encoder import Features, ImageEncoder
from limner.types import Pixels

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luminance (ITU-R BT.601)."""


class LuminanceGradient(ImageEncoder):
    """Mean absolute difference of neighbouring pixels' luminance Y in [0, 1]: the one feature of a picture.

    (mean |Y(r, c + 1) - Y(r, c)| + mean |Y(r + 1, c) - Y(r, c)|) / 2. A blurred picture has less than a sharp one, and
    a grainy one more; pictures are compared as they are, so only those of one size and of the same prompts can be.
    """

    name = "luminance_gradient"
    about = (
        "Mean absolute gradient of the luminance: knows how sharp or grainy a picture is, and not what it shows. It "
        "says something beside pictures of the same prompts and size only."
    )

    def __init__(self) -> None:
        self.identity = hashlib.sha256(f"luminance_gradient {LUMA}".encode()).hexdigest()[:16]

    def __call__(self, pixels: Pixels) -> Features:
        """Return the mean absolute gradient of each picture, one column; `pixels` in [-1, 1]."""
        weights = torch.tensor(LUMA).view(1, 3, 1, 1)
        luminance = ((pixels.float().cpu() + 1) / 2 * weights).sum(1)
        across, down = (luminance.diff(dim=dim).abs().mean((1, 2)) for dim in (2, 1))
        return ((across + down) / 2)[:, None]
