"""Who judges: the encoders that are named, or those that fit the base and are on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from limner.errors import UserError
from limner.families.source import EMBEDDED, locate
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.encoder import ImageEncoder
from limner.metrics.image_text import ImageText
from limner.metrics.lite0 import Lite0
from limner.metrics.metric import Metric
from limner.metrics.perceptual import Lpips, why_no_lpips
from limner.metrics.published import PUBLISHED, how_to_get, load_encoder, load_quality, on_this_machine, require, short
from limner.metrics.questions import PERCEIVED_DIVERSITY
from limner.metrics.standard import quality_metric, standard_metrics

IMAGE_TEXT_FOLDER = "image_text_encoder"
SHIPPED = ("lite0", "colour_histogram", "image_text")
"""Names of the encoders that need no download; the last is the one inside the base's folder."""
ENCODERS, QUALITY = "evaluation.encoders", "evaluation.quality"


@dataclass(frozen=True)
class Panel:
    """Who judges, on which metrics, and what nobody judges."""

    encoders: tuple[ImageEncoder, ...]
    metrics: tuple[Metric, ...]
    distances: tuple[Lpips, ...] = ()
    """What takes pictures two by two."""
    absent: Mapping[str, str] = field(default_factory=dict[str, str])
    """What is not measured, and how to have it measured."""


def require_panel(base: str, names: Sequence[str] = (), quality: str = "") -> None:
    """Refuse encoders and a model of quality that cannot be found; nothing is downloaded or loaded.

    Raises:
        UserError: one is neither on this machine nor on the hub, or two would have one name.
    """
    for name in names:
        if name == "image_text" and _image_text_folder(base) is None:
            raise UserError(f"{ENCODERS}: {base} has no image-text encoder of its own.", "Name another, such as CLIP.")
        if name not in SHIPPED:
            require(name, ENCODERS)
    if quality:
        require(quality, QUALITY)
    shorts = [short(name) for name in (*names, *filter(None, [quality]))]
    for name in shorts:
        if shorts.count(name) > 1:
            raise UserError(f"{ENCODERS}: two would be called {name}.", "Rename the folder of one.")


def panel_of(base: str, names: Sequence[str] = (), quality: str = "", device: torch.device | str = "cpu") -> Panel:
    """Load who judges pictures of a base: those that are named, or those that fit it and are on this machine.

    For the embedded base that is lite0, the colour histogram and its own image-text encoder; for others the published
    encoders as far as they are here, else lite0, and the histogram. What is missing is said in `absent`. Published
    models compute on `device`, the small ones on the CPU.
    """
    require_panel(base, names, quality)
    encoders, absent = encoders_of(base, names, device)
    metrics = standard_metrics(encoders)
    if quality:
        judge = load_quality(quality, QUALITY, device)
        encoders, metrics = (*encoders, judge), (*metrics, quality_metric(judge))
    else:
        absent["preference"] = f"no model of image quality is named; {QUALITY}=yuvalkirstain/PickScore_v1 is one"
    distances: tuple[Lpips, ...] = ()
    if not _is_small(base):
        missing = why_no_lpips()
        try:
            distances = () if missing else (Lpips(device),)
        except OSError as error:
            missing = f"AlexNet's weights cannot be downloaded ({error}); run once with a network"
        absent |= {f"diversity.{Lpips.name}": missing} if missing else {}
    metrics = (*metrics, *(Metric(PERCEIVED_DIVERSITY, distance.name) for distance in distances))
    return Panel(encoders, metrics, distances, absent)


def encoders_of(
    base: str, names: Sequence[str] = (), device: torch.device | str = "cpu"
) -> tuple[tuple[ImageEncoder, ...], dict[str, str]]:
    """Load the encoders of `panel_of`, and return with them what is missing: nobody judges quality or takes two."""
    absent: dict[str, str] = {}
    if names:
        encoders = tuple(_load(name, base, device) for name in names)
    elif _is_small(base):
        own = (_load("image_text", base, device),) if _image_text_folder(base) else ()
        encoders = (Lite0(), ColourHistogram(), *own)
    else:
        here = [name for name in PUBLISHED if on_this_machine(name)]
        absent |= {f"subject_fidelity.{short(name)}": how_to_get(name) for name in PUBLISHED if name not in here}
        published = [load_encoder(name, ENCODERS, device) for name in here]
        readers = [e for e in published if isinstance(e, ImageText)]
        encoders = (*([e for e in published if e not in readers] or [Lite0()]), *readers, ColourHistogram())
        absent |= {} if readers else {"prompt_following": how_to_get(PUBLISHED[-1])}
    return encoders, absent


def _is_small(base: str) -> bool:
    return base in EMBEDDED or _image_text_folder(base) is not None


def _load(name: str, base: str, device: torch.device | str) -> ImageEncoder:
    if name == "lite0":
        return Lite0()
    if name == "colour_histogram":
        return ColourHistogram()
    folder = _image_text_folder(base) if name == "image_text" else None
    if folder is None:
        return load_encoder(name, ENCODERS, device)
    about = (
        f"The image-text encoder inside the base {base}. Not independent: its text tower is the one that conditions "
        "the base, so it judges whether pictures show what the base was told, in the base's own understanding."
    )
    return ImageText(
        folder / IMAGE_TEXT_FOLDER,
        tokenizer=folder / "tokenizer",
        name=f"{folder.name}_image_text",
        about=about,
        is_independent=False,
        device=device,
    )


def _image_text_folder(base: str) -> Path | None:
    """Return the base's folder where it has an image-text encoder of its own."""
    folder = locate(base)
    return folder if folder and (folder / IMAGE_TEXT_FOLDER).is_dir() else None
