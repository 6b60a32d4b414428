"""Transforms of a picture as functions: a Pillow image, or a tensor with channels first."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(Enum):
    """How pixels between pixels are made; the names are torch's."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def pil_to_tensor(image: Image.Image | np.ndarray[Any, Any]) -> Tensor:
    """Return the values of a picture, channels first."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


def to_tensor(image: Image.Image | np.ndarray[Any, Any]) -> Tensor:
    """Return a picture, of bytes in [0, 1], channels first."""
    tensor = pil_to_tensor(image)
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor


def size_of(image: Image.Image | Tensor) -> tuple[int, int]:
    """Return height and width."""
    return image.size[::-1] if isinstance(image, Image.Image) else (image.shape[-2], image.shape[-1])


def resize(
    image: Any,
    size: int | Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    max_size: int | None = None,
    antialias: bool | None = True,
) -> Any:
    """Bring a picture to a height and width, or its shorter side to a length."""
    height, width = size_of(image)
    if not isinstance(size, int) and len(size) == 1:
        size = size[0]
    if isinstance(size, int):
        scale = size / min(height, width)
        target = (size, round(width * scale)) if height <= width else (round(height * scale), size)
    else:
        target = (size[0], size[1])
    if target == (height, width):
        return image
    if isinstance(image, Image.Image):
        return image.resize(target[::-1], Image.Resampling[interpolation.name.partition("_")[0]])
    smooth = interpolation in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    return torch.nn.functional.interpolate(
        image[None].float(), target, mode=interpolation.value, antialias=smooth and bool(antialias),
        align_corners=False if smooth else None,
    )[0].to(image.dtype)  # fmt: skip


def crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
    """Cut a rectangle out of a picture."""
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    return image[..., top : top + height, left : left + width]


def center_crop(image: Any, size: Sequence[int]) -> Any:
    """Cut the middle out of a picture."""
    height, width = size_of(image)
    return crop(image, (height - size[0]) // 2, (width - size[1]) // 2, size[0], size[1])


def hflip(image: Any) -> Any:
    """Mirror a picture."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if isinstance(image, Image.Image) else image.flip(-1)


def normalize(tensor: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (picture - mean) / std, channel by channel."""
    return (tensor - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
