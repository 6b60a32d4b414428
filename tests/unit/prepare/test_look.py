"""What one picture tells: where its subject is, how sharp it is."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.look import blur


def scene(x: int, y: int, size: tuple[int, int] = (240, 80)) -> Image.Image:
    """Return a soft background with one small striped subject at a place."""
    draws = np.random.default_rng(0).integers(90, 110, (4, 12, 3), dtype=np.uint8)
    image = Image.fromarray(draws).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for ring in range(12, 0, -3):
        pen.ellipse((x - ring, y - ring, x + ring, y + ring), fill="red" if ring % 2 else "white")
    return image


@pytest.mark.parametrize("x", [30, 120, 210])
def test_the_crop_follows_what_stands_out(tmp_path, x):
    scene(x, 40).save(tmp_path / "a.png")
    spec = Pictures(crop="subject", buckets=False)
    (example,) = check_pictures(tmp_path, spec, resolution_px=80).examples
    assert example.fit.left <= x - 12
    assert x + 12 <= example.fit.left + 80
    (centred,) = check_pictures(tmp_path, Pictures(buckets=False), resolution_px=80).examples
    assert centred.fit.left == 80


def test_the_crop_follows_the_mask_before_what_stands_out(tmp_path):
    scene(30, 40).save(tmp_path / "a.png")
    mask = Image.new("L", (240, 80), 0)
    mask.paste(255, (180, 20, 220, 60))
    mask.save(tmp_path / "a-mask.png")
    spec = Pictures(crop="subject", buckets=False)
    (example,) = check_pictures(tmp_path, spec, resolution_px=80).examples
    assert example.fit.left == 160


def test_blur_grows_as_a_picture_is_blurred():
    image = scene(120, 40)
    measured = [blur(image.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    assert measured == sorted(measured)
    assert measured[0] < 0.5
    assert blur(Image.new("RGB", (64, 64), "red")) == 0
