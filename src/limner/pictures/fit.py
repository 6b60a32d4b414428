"""How a picture is brought to a size of the grid: resized to cover it, then cropped; nothing is squashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
"""Width and height in pixels."""

MOST_ASPECT = 2.0
"""The longest buckets are this many times as long as they are wide."""
REDUCING_GAP = 3.0
"""A picture may be reduced by averaging down to this many times the size that is wanted, before it is resized."""
LEAST_AREA = 0.75
"""The smallest buckets have this share of the training square's area."""


@dataclass(frozen=True)
class Fit:
    """A resize and a crop, in pixels; part of the cache's key."""

    resized: Size
    left: int
    top: int
    size: Size
    """Of the result: the bucket."""

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the resized and cropped picture (antialiased Lanczos)."""
        if image.size != self.resized:
            image = image.resize(self.resized, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
        width, height = self.size
        return image.crop((self.left, self.top, self.left + width, self.top + height))

    @property
    def shortest_px(self) -> int:
        """Return how long the shorter side of the picture must at least be for `apply` to lose nothing."""
        return round(REDUCING_GAP * min(self.resized))

    @property
    def lost_share(self) -> float:
        """Return the share of the picture that the crop takes away, in [0, 1)."""
        return 1 - (self.size[0] * self.size[1]) / (self.resized[0] * self.resized[1])


def fit_to(size: Size, target: Size, centre: tuple[float, float] = (0.5, 0.5)) -> Fit:
    """Return how a picture of `size` is brought to `target`, cropped around `centre` (in [0, 1], from top left)."""
    scale = enlargement(size, target)
    resized = (max(target[0], round(size[0] * scale)), max(target[1], round(size[1] * scale)))
    left, top = (
        min(max(round(at * whole - part / 2), 0), whole - part)
        for at, whole, part in zip(centre, resized, target, strict=True)
    )
    return Fit(resized, left, top, target)


def enlargement(size: Size, target: Size) -> float:
    """Return the factor by which a picture is resized to cover `target`; above 1 it is enlarged."""
    return max(target[0] / size[0], target[1] / size[1])


def buckets_for(resolution_px: int, step_px: int) -> list[Size]:
    """Return the grid of sizes: sides are multiples of `step_px`, areas near the training square's and not above it."""
    most, least = resolution_px**2, resolution_px**2 * LEAST_AREA
    sides = range(step_px, int(resolution_px * MOST_ASPECT) + 1, step_px)
    fitting = {
        (width, height)
        for width in sides
        for height in sides
        if least <= width * height <= most and max(width / height, height / width) <= MOST_ASPECT
    }
    return sorted(fitting | {(resolution_px, resolution_px)})


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket that loses least of a picture to the crop, to a hundredth; of equal ones the largest."""

    def rank(bucket: Size) -> tuple[float, int, int]:
        covered = min(size[0] / bucket[0], size[1] / bucket[1])
        kept = bucket[0] * bucket[1] * covered**2 / (size[0] * size[1])
        return (-round(kept, 2), -bucket[0] * bucket[1], abs(bucket[0] - bucket[1]))

    return min(buckets, key=rank)
