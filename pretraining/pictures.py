"""Stage `pictures`: render the data set with DiceBear and write its exact captions."""

from __future__ import annotations

import io
import json
import multiprocessing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from pretraining.world import (
    COLOURS,
    HELD_OUT_STYLES,
    MAIN_COLOURS,
    ROLES,
    STYLES,
    StyleSpec,
    alike,
    caption,
    identity_is_held_out,
    shade,
    spec_of,
)

RESOLUTION_PX = 64
CELLS = 16  # a side of the map of named parts: the UNet's latents
CHANGED = 24  # of 255: a pixel that differs by more belongs to a part
CAPTIONS_PER_PICTURE = 4
TRAIN, HELD_OUT, HELD_OUT_PER_STYLE = 26_000, 1_600, 200
_STYLES: dict[str, Style] = {}


@dataclass(frozen=True)
class Identity:
    """What stays the same in every picture of one subject: parts and colours."""

    noun: str
    variants: dict[str, str]  # part -> variant; absent parts are left out
    main: str  # colour name
    colours: dict[str, str]  # DiceBear colour option -> hex
    seed: int


def _style(name: str) -> Style:
    if name not in _STYLES:
        text = files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")
        _STYLES[name] = Style(json.loads(text))
    return _STYLES[name]


def draw_identity(spec: StyleSpec, random: Random) -> Identity:
    """Draw the parts and colours of a new subject of this style."""
    variants = {}
    for part, choices in [*spec.parts.items(), *spec.silent.items()]:
        if random.random() >= spec.absent.get(part, 0.0):
            variants[part] = random.choice(list(choices))
    main = random.choice(MAIN_COLOURS)
    colours = {spec.main: shade(main, random)}
    for option in spec.accents:
        name = random.choice([c for c in MAIN_COLOURS if not alike(c, main)])
        colours[option] = shade(name, random)
    return Identity(spec.noun, variants, main, colours, random.randrange(2**31))


def change_face(identity: Identity, random: Random) -> Identity:
    """Return the same subject with another mouth, where its style has mouths."""
    spec = spec_of(identity.noun)
    if "mouth" not in identity.variants:
        return identity
    mouths = list((spec.parts | spec.silent)["mouth"])
    variants = identity.variants | {"mouth": random.choice(mouths)}
    return Identity(identity.noun, variants, identity.main, identity.colours, identity.seed)


def describe(identity: Identity, background: str, scale: float) -> dict[str, Any]:
    """Return every attribute of a picture that a caption may name."""
    spec = spec_of(identity.noun)
    phrases = {part: words[identity.variants[part]] for part, words in spec.parts.items() if part in identity.variants}
    low, high = spec.scale
    third = (high - low) / 4
    size = "small" if scale < low + third else "big" if scale > high - third else ""
    return {
        "noun": spec.noun,
        "main": identity.main,
        "background": background,
        "size": size,
        "phrases": phrases,
        "variants": identity.variants,
        "roles": {spec.roles[p]: words for p, words in phrases.items() if p in spec.roles},
    }


def _options(
    identity: Identity, random: Random, px: int, background: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a new pose before a new background; return DiceBear's options and the attributes of the picture."""
    spec = spec_of(identity.noun)
    background = background or random.choice([c for c in COLOURS if not alike(c, identity.main)])
    scale = random.uniform(*spec.scale)
    options: dict[str, Any] = {
        "seed": str(identity.seed),
        "size": px,
        "backgroundColor": [shade(background, random)],
        "scale": scale,
        "rotate": random.uniform(-spec.rotate, spec.rotate),
        "translateX": random.uniform(-spec.shift, spec.shift),
        "translateY": spec.drop + random.uniform(-spec.shift, spec.shift) * 0.5,
        "flip": random.choice(("none", "horizontal")),
        **spec.options,
        **{f"{name}Color": [value] for name, value in identity.colours.items()},
    }
    for part in [*spec.parts, *spec.silent]:
        present = part in identity.variants
        options[f"{part}Probability"] = 100 if present else 0
        if present:
            options[f"{part}Variant"] = identity.variants[part]
    return options, describe(identity, background, scale)


def _raster(spec: StyleSpec, options: dict[str, Any], px: int) -> Image.Image:
    svg = Avatar(_style(spec.style), options).to_string()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=px * 2, height=px * 2))
    return Image.open(io.BytesIO(png)).convert("RGB").resize((px, px), Image.Resampling.BOX)


def draw_picture(
    identity: Identity, random: Random, px: int = RESOLUTION_PX, background: str | None = None
) -> tuple[Image.Image, dict[str, Any]]:
    """Render the subject in a new pose before a new background; return image and attributes."""
    options, attributes = _options(identity, random, px, background)
    return _raster(spec_of(identity.noun), options, px), attributes


def _named_parts(spec: StyleSpec, options: dict[str, Any], image: Image.Image) -> np.ndarray:
    """Return where a picture shows the parts that captions name: uint8 (ROLES, CELLS, CELLS), 255 in a full cell.

    The same picture is rendered without the part; what differs is the part's. A part that is absent is nowhere.
    """
    px, side = image.width, image.width // CELLS
    where = np.zeros((len(ROLES), CELLS, CELLS), np.uint8)
    for part, role in spec.roles.items():
        if options[f"{part}Probability"]:
            bare = _raster(spec, options | {f"{part}Probability": 0}, px)
            difference = np.abs(np.asarray(image, int) - np.asarray(bare, int)).max(-1) > CHANGED
            share = difference.reshape(CELLS, side, CELLS, side).mean((1, 3))
            where[ROLES.index(role)] = (share * 255).round()
    return where


def draw_example(noun: str, seed: int, held_out: bool, px: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw one example: pixels, where its named parts are, attributes; `held_out` is its identity's side of the split.

    The same picture at any size: `px` changes nothing that is drawn.
    """
    random = Random(f"limner {noun} {seed} {held_out}")
    spec = spec_of(noun)
    while True:
        identity = draw_identity(spec, random)
        side = identity_is_held_out(noun, identity.variants, identity.main)
        if noun in HELD_OUT_STYLES or side == held_out:
            break
    options, attributes = _options(identity, random, px, None)
    image = _raster(spec, options, px)
    attributes["captions"] = [caption(attributes, random) for _ in range(CAPTIONS_PER_PICTURE)]
    attributes["full_caption"] = caption(attributes, random, keep=1.0)
    return np.asarray(image), _named_parts(spec, options, image), attributes


def _draw(job: tuple[str, int, bool, int]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    return draw_example(*job)


def _render(folder: Path, name: str, jobs: list[tuple[str, int, bool, int]], processes: int) -> None:
    """Render `jobs` into NAME.npy, NAME_parts.npy and NAME.jsonl; the captions come last and mean "complete"."""
    captions = folder / f"{name}.jsonl"
    if captions.exists() and len(captions.read_text().splitlines()) == len(jobs):
        return
    px = jobs[0][-1]
    array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (len(jobs), px, px, 3))
    parts = np.empty((len(jobs), len(ROLES), CELLS, CELLS), np.uint8)
    lines = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for i, (pixels, where, attributes) in enumerate(pool.imap(_draw, jobs, chunksize=64)):
            array[i], parts[i] = pixels, where
            lines.append(json.dumps(attributes))
            if i % 2000 == 0:
                print(f"{name}: {i} of {len(jobs)} pictures", flush=True)
    array.flush()
    np.save(folder / f"{name}_parts.npy", parts)
    captions.write_text("\n".join(lines) + "\n")


def render(work: Path, name: str, count: int, px: int = RESOLUTION_PX, processes: int = 2) -> None:
    """Render the first `count` pictures of the part `name`, `train` or `held_out`, of every class in turn."""
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    nouns = list(STYLES)
    jobs = [(nouns[i % len(nouns)], i, name == "held_out", px) for i in range(count)]
    _render(folder, name, jobs, processes)


def run(work: Path, processes: int = 2, scale: float = 1.0) -> None:
    """Render held-out pictures first, then the training pictures; `scale` multiplies the counts."""
    render(work, "held_out", int(HELD_OUT * scale), processes=processes)
    for noun in HELD_OUT_STYLES:
        jobs = [(noun, i, True, RESOLUTION_PX) for i in range(int(HELD_OUT_PER_STYLE * scale))]
        _render(work / "pictures", f"style_{noun.replace(' ', '_')}", jobs, processes)
    render(work, "train", int(TRAIN * scale), processes=processes)
