"""Reading a picture."""

from __future__ import annotations

from enum import Enum

import torch
from PIL import Image, ImageOps
from torch import Tensor

from torchvision.transforms.functional import pil_to_tensor


class ImageReadMode(Enum):
    """What a picture is read as: the names of Pillow's modes."""

    GRAY = "L"
    RGB = "RGB"


def read_image(path: str, mode: ImageReadMode = ImageReadMode.RGB, apply_exif_orientation: bool = False) -> Tensor:
    """Return a picture as bytes, channels first."""
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image) if apply_exif_orientation else image
        return pil_to_tensor(turned.convert(mode.value)).to(torch.uint8)
