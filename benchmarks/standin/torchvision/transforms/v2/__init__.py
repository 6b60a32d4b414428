"""The newer names of the same functions."""

from torchvision.transforms.v2 import functional

__all__ = ["functional"]
