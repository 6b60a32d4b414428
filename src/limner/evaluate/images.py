"""Reads what the earlier stages left: every arm's images, the training pictures, the class pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.errors import UserError
from limner.rundir import RunDir, read_json

BASE = "base"
SETTINGS = ("num_inference_steps", "guidance_scale", "scheduler", "resolution_px")


@dataclass(frozen=True)
class ArmImage:
    """One image of an arm's manifest."""

    path: Path
    set: str
    prompt: str
    plain_prompt: str
    prompt_index: int
    image_index: int
    seed: int

    @property
    def pair(self) -> tuple[str, int, int]:
        """Return what the image shares with its partner in every other arm."""
        return self.set, self.prompt_index, self.image_index


@dataclass(frozen=True)
class Arm:
    """One arm: its images in the order of their pairs, and how they were made."""

    name: str
    base: str
    """What the user called the base."""
    settings: dict[str, Any]
    images: tuple[ArmImage, ...]


def read_arms(run: RunDir) -> tuple[Arm, ...]:
    """Return every arm of a run, the base first; refuse arms that cannot be compared picture by picture."""
    folders = sorted(p.parent for p in run.images.glob("*/manifest.json"))
    arms = sorted((_read_arm(folder) for folder in folders), key=lambda arm: (arm.name != BASE, arm.name))
    if not arms or arms[0].name != BASE:
        raise UserError(f"{run.images}: holds no images of the base.", "Make them with: limner generate RUN")
    if len(arms) < 2:
        raise UserError(
            f"{run.images}: holds images of the base only, so there is nothing to compare it with.",
            "Make the tuned images with: limner generate RUN",
        )
    for arm in arms[1:]:
        _check_comparable(arms[0], arm)
    return tuple(arms)


def read_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures of a folder's manifest; none where there is no manifest."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return ()
    content = read_json(manifest)
    rows = content.get("pictures") or content.get("images") or []
    return tuple(folder / row["file"] for row in rows)


def load_pixels(path: Path) -> Float[Tensor, "3 height width"]:
    """Return a picture as pixels in [-1, 1]."""
    try:
        with Image.open(path) as picture:
            array = np.array(picture.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).", "Make the images again, or restore the file.") from error
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1


def _read_arm(folder: Path) -> Arm:
    manifest = read_json(folder / "manifest.json")
    try:
        rows = [
            ArmImage(
                path=folder / row["file"],
                set=row["set"],
                prompt=row["prompt"],
                plain_prompt=row.get("plain_prompt") or row["prompt"],
                prompt_index=row["prompt_index"],
                image_index=row["image_index"],
                seed=row["seed"],
            )
            for row in manifest["images"]
        ]
        settings = {name: manifest[name] for name in SETTINGS}
        name, base = manifest["arm"], manifest["base"]
    except KeyError as error:
        raise UserError(
            f"{folder / 'manifest.json'}: {error} is missing.", "Make the images again with: limner generate RUN"
        ) from error
    return Arm(name=name, base=base, settings=settings, images=tuple(sorted(rows, key=lambda row: row.pair)))


def _check_comparable(base: Arm, arm: Arm) -> None:
    """Refuse a comparison whose difference could come from anything but the tuning."""
    remedy = "Make both again with the same settings: limner generate RUN"
    for name in SETTINGS:
        if base.settings[name] != arm.settings[name]:
            words = {"num_inference_steps": "{} steps", "guidance_scale": "guidance {}", "resolution_px": "{} px"}
            form = words.get(name, "{}").format
            found, other = form(base.settings[name]), form(arm.settings[name])
            raise UserError(f"Comparison refused: base used {found}, {arm.name} {other}.", remedy)
    here, there = {i.pair: i for i in base.images}, {i.pair: i for i in arm.images}
    for pair in sorted(here.keys() ^ there.keys()):
        lacks = arm.name if pair in here else base.name
        name = f'set "{pair[0]}", prompt {pair[1]}, image {pair[2]}'
        raise UserError(f"Comparison refused: {lacks} lacks an image that the other arm has ({name}).", remedy)
    for pair, image in here.items():
        if (image.seed, image.plain_prompt) != (there[pair].seed, there[pair].plain_prompt):
            name = f'{image.path.name}: "{image.plain_prompt}" with seed {image.seed}'
            other = f'"{there[pair].plain_prompt}" with seed {there[pair].seed}'
            raise UserError(f"Comparison refused: base made {name}, {arm.name} {other}.", remedy)
