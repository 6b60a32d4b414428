"""The few parts of torchvision that the peers use on this path, where no build of it fits the installed torch."""

from torchvision import io, transforms

__all__ = ["io", "transforms"]
__version__ = "0.27.0"  # what the peers ask it for is that of this version
