"""Transforms of a picture, one class each."""

from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.transforms import (
    CenterCrop,
    Compose,
    Lambda,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    ToTensor,
)

__all__ = [
    "CenterCrop", "Compose", "InterpolationMode", "Lambda", "Normalize", "RandomCrop", "RandomHorizontalFlip",
    "Resize", "ToTensor", "functional",
]  # fmt: skip
