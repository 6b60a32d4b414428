from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from limner.report.embed import data_uri, is_small


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_small_picture_is_kept_pixel_for_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    uri = data_uri(tmp_path / "a.png")
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.array(decoded(uri)), pixels)
    assert is_small(tmp_path / "a.png")


def test_a_large_picture_is_made_light(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1024, 768)).convert("RGB").save(tmp_path / "b.png")
    uri = data_uri(tmp_path / "b.png")
    assert uri.startswith("data:image/webp;base64,")
    assert decoded(uri).size == (512, 384)
    assert not is_small(tmp_path / "b.png")
