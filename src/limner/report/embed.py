"""Puts pictures into the page itself, so that the report is one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

LARGEST_PX = 512
SMALL_PX = 160
"""A picture up to this size is kept pixel for pixel and shown enlarged with hard edges."""


def data_uri(path: Path) -> str:
    """Return a picture as a data URI: small ones as PNG, unchanged; larger ones as WebP of at most 512 px."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    buffer = io.BytesIO()
    if max(rgb.size) <= SMALL_PX:
        rgb.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        rgb.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
        rgb.save(buffer, "WEBP", quality=88)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def is_small(path: Path) -> bool:
    """Return whether a picture is so small that it is shown enlarged."""
    with Image.open(path) as picture:
        return max(picture.size) <= SMALL_PX
