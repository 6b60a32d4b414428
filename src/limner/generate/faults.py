"""Pictures that are no pictures: of one colour, or of numbers that are not finite; and whose fault it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageStat
from torch import Tensor

from limner.rundir import read_json
from limner.types import Pixels

SPREAD = 2
"""A picture none of whose channels varies by more than this, of 255, is of one colour."""


def to_images(pixels: Pixels) -> list[Image.Image]:
    """Return pictures in [-1, 1] as RGB images; what is not finite becomes black."""
    rows = ((pixels / 2 + 0.5).clamp(0, 1).nan_to_num(0) * 255).round().to(torch.uint8)
    return [Image.fromarray(row) for row in rows.permute(0, 2, 3, 1).cpu().numpy()]


def is_spoilt(picture: Float[Tensor, "3 height width"]) -> bool:
    """Tell whether a decoded picture in [-1, 1] is not finite or of one colour."""
    low, high = picture.flatten(1).aminmax(dim=1)
    return not bool(picture.isfinite().all()) or bool((high - low <= SPREAD / 127.5).all())


def overflow(latents: Float[Tensor, "channels height width"], dtype: torch.dtype) -> str | None:
    """Return what is wrong with a picture's latents, or None."""
    return None if bool(latents.isfinite().all()) else f"not finite in {str(dtype).removeprefix('torch.')}"


def constant_colour(file: Path) -> str | None:
    """Return the colour of a picture that has only one, or None."""
    with Image.open(file) as image:
        extrema = ImageStat.Stat(image.convert("RGB")).extrema
    if any(high - low > SPREAD for low, high in extrema):
        return None
    brightness = sum(high for _, high in extrema) / len(extrema)
    return "black" if brightness < 8 else "white" if brightness > 247 else "one colour"


def tell_faults(manifest: Path, what: str, *, tuned: bool) -> str | None:
    """Return a line about the pictures of a manifest that are none, and whose fault it is; None where all are well.

    `what` names them; `tuned` says that an adapter was at work, whose weights are known to be finite.
    """
    content = read_json(manifest)
    faults: dict[str, str] = content.get("faults", {})
    if not faults:
        return None
    why, _ = Counter(faults.values()).most_common(1)[0]
    many, first = f"{len(faults)} of {len(content['images'])} pictures are", next(iter(faults))
    if why.startswith("not finite"):
        cause = "The weights are finite: the UNet overflows. Set precision=float32 (or bfloat16)."
    elif tuned:
        cause = (
            "The weights are finite and the VAE was tried in float32: the adapter has gone too far, or the guidance is "
            "too strong. Lower learning_rate or generation.guidance_scale."
        )
    else:
        cause = "The VAE was tried in float32: this base does not draw such a picture. Try another prompt or base."
    return f"{what}: {many} {why} (first: {first}). {cause}"
