"""Transforms of a picture as objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

Size = int | Sequence[int]


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """Any function."""

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        return self.lambd(image)


class Resize:
    """`functional.resize`."""

    def __init__(
        self,
        size: Size,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        max_size: int | None = None,
        antialias: bool | None = True,
    ) -> None:
        self.size, self.interpolation, self.antialias = size, interpolation, antialias

    def __call__(self, image: Any) -> Any:
        return functional.resize(image, self.size, self.interpolation, antialias=self.antialias)


class CenterCrop:
    """The middle."""

    def __init__(self, size: Size) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def __call__(self, image: Any) -> Any:
        return functional.center_crop(image, self.size)


class RandomCrop(CenterCrop):
    """Somewhere."""

    @staticmethod
    def get_params(img: Any, output_size: Sequence[int]) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a rectangle somewhere."""
        spare = [have - want for have, want in zip(functional.size_of(img), output_size, strict=True)]
        top, left = (int(torch.randint(most + 1, (1,))) for most in spare)
        return top, left, output_size[0], output_size[1]

    def __call__(self, image: Any) -> Any:
        return functional.crop(image, *self.get_params(image, self.size))


class RandomHorizontalFlip:
    """Mirrored, or not."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Any) -> Any:
        return functional.hflip(image) if float(torch.rand(1)) < self.p else image


class ToTensor:
    """`functional.to_tensor`."""

    def __call__(self, image: Any) -> Any:
        return functional.to_tensor(image)


class Normalize:
    """`functional.normalize`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        self.mean, self.std = mean, std

    def __call__(self, tensor: Any) -> Any:
        return functional.normalize(tensor, self.mean, self.std)
