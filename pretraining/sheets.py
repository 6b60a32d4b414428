"""Contact sheets: captioned tiles of pictures, always the first ones by index."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE_PX, TEXT_PX = 96, 38


def images(pixels: Tensor) -> list[Image.Image]:
    """Return PIL images of pixels (batch, 3, height, width) in [-1, 1]."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(value)) for value in values]


def write(path: Path, tiles: list[tuple[str, list[Image.Image]]], columns: int) -> None:
    """Write a sheet of tiles: the pictures of each side by side, its caption below."""
    across = max(len(group) for _, group in tiles)
    width, height = across * TILE_PX + 8, TILE_PX + TEXT_PX
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for i, (caption, group) in enumerate(tiles):
        x, y = i % columns * width, i // columns * height
        for j, image in enumerate(group):
            large = image.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
            sheet.paste(large, (x + j * TILE_PX, y))
        lines = textwrap.wrap(caption, across * TILE_PX // 5)[:3]
        pen.multiline_text((x + 2, y + TILE_PX + 1), "\n".join(lines), "black", font, spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=82, method=6)
