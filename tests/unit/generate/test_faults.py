"""Pictures that are none: found in pixels and in files, and told with whose fault it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from limner.generate.faults import constant_colour, is_spoilt, overflow, tell_faults, to_images


def test_images_are_what_the_stock_pipeline_makes_of_pixels() -> None:
    from diffusers.image_processor import VaeImageProcessor

    pixels = 3 * torch.rand(2, 3, 8, 8) - 1.5
    for ours, theirs in zip(to_images(pixels), VaeImageProcessor().postprocess(pixels, "pil"), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_what_is_not_finite_is_black_and_no_warning() -> None:
    assert to_images(torch.full((1, 3, 2, 2), torch.nan))[0].getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("picture", "spoilt"),
    [
        (torch.zeros(3, 8, 8), True),
        (torch.zeros(3, 8, 8) + torch.tensor([-1.0, 0, 1]).view(3, 1, 1), True),
        (torch.full((3, 8, 8), torch.nan), True),
        (torch.linspace(-1, -0.9, 192).view(3, 8, 8), False),
    ],
    ids=["grey", "one colour", "not finite", "dark"],
)
def test_spoilt_pixels(picture: torch.Tensor, spoilt: bool) -> None:
    assert is_spoilt(picture) == spoilt


@pytest.mark.parametrize(
    ("colour", "told"), [("black", "black"), ("#010102", "black"), ("white", "white"), ("#335577", "one colour")]
)
def test_files_of_one_colour(tmp_path: Path, colour: str, told: str) -> None:
    image = Image.new("RGB", (16, 16), colour)
    image.save(tmp_path / "x.png")
    assert constant_colour(tmp_path / "x.png") == told
    image.putpixel((3, 3), (90, 90, 90))
    image.save(tmp_path / "x.png")
    assert constant_colour(tmp_path / "x.png") is None


def test_the_line_says_whose_fault_it_is(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"

    def told(faults: dict[str, str], *, tuned: bool) -> str | None:
        manifest.write_text(json.dumps({"images": [{}] * 4, "faults": faults}))
        return tell_faults(manifest, "preview at step 500", tuned=tuned)

    assert told({}, tuned=True) is None
    assert overflow(torch.zeros(4, 2, 2), torch.float16) is None
    why = overflow(torch.full((4, 2, 2), torch.inf), torch.float16)
    assert why == "not finite in float16"
    line = told({"a.png": why}, tuned=True)
    assert line == (
        "preview at step 500: 1 of 4 pictures are not finite in float16 (first: a.png). The weights are finite: the "
        "UNet overflows. Set precision=float32 (or bfloat16)."
    )
    assert "the adapter has gone too far" in str(told({"a.png": "constant (black)"}, tuned=True))
    assert "this base does not draw" in str(told({"a.png": "constant (black)"}, tuned=False))
