"""How a picture is brought to a size: resized to cover it, then cropped; nothing is squashed."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Fit:
    """A resize and a crop, in pixels; part of the cache's key."""

    resized: tuple[int, int]
    """Width and height after the resize."""
    left: int
    top: int
    size: tuple[int, int]
    """Width and height of the result."""

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the resized and cropped picture (antialiased Lanczos)."""
        if image.size != self.resized:
            image = image.resize(self.resized, Image.Resampling.LANCZOS)
        width, height = self.size
        return image.crop((self.left, self.top, self.left + width, self.top + height))

    def lost_share(self) -> float:
        """Return the share of the picture that the crop takes away, in [0, 1)."""
        return 1 - (self.size[0] * self.size[1]) / (self.resized[0] * self.resized[1])


def fit_to(size: tuple[int, int], target: tuple[int, int]) -> Fit:
    """Return how a picture of `size` is brought to `target` (both width, height), cropped at its centre."""
    scale = enlargement(size, target)
    resized = (max(target[0], round(size[0] * scale)), max(target[1], round(size[1] * scale)))
    return Fit(resized, (resized[0] - target[0]) // 2, (resized[1] - target[1]) // 2, target)


def enlargement(size: tuple[int, int], target: tuple[int, int]) -> float:
    """Return the factor by which a picture is resized to cover `target`; above 1 it is enlarged."""
    return max(target[0] / size[0], target[1] / size[1])
