"""Which encoders look when nobody names any: those that need no download."""

from __future__ import annotations

from limner.families.source import locate
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.encoder import ImageEncoder
from limner.metrics.image_text import ImageText
from limner.metrics.lite0 import Lite0

IMAGE_TEXT_FOLDER = "image_text_encoder"


def default_encoders(base: str) -> tuple[ImageEncoder, ...]:
    """Return lite0, the colour histogram, and the image-text encoder where the base's folder has one."""
    folder = locate(base)
    if folder is None or not (folder / IMAGE_TEXT_FOLDER).is_dir():
        return Lite0(), ColourHistogram()
    about = (
        f"The image-text encoder inside the base {base}. Not independent: its text tower is the one that conditions "
        "the base, so it judges whether pictures show what the base was told, in the base's own understanding."
    )
    name = f"{folder.name}_image_text"
    encoder = ImageText(folder / IMAGE_TEXT_FOLDER, tokenizer=folder / "tokenizer", name=name, about=about)
    return Lite0(), ColourHistogram(), encoder
