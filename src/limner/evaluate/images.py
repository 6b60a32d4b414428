"""Reads what the earlier stages left: every arm's images, the training pictures, the class pictures."""

from __future__ import annotations

from collections.abc import Sequence
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

BASE, TUNED = "base", "tuned"
SETTINGS = {
    "num_inference_steps": "{} steps",
    "guidance_scale": "guidance {}",
    "scheduler": "the sampler {}",
    "resolution_px": "{} px",
    "negative_prompt": "the negative prompt {!r}",
}
"""Settings of the sampler that must be equal, and how each is said."""
OF_FEW_STEPS = {"num_inference_steps", "guidance_scale", "scheduler"}
"""Those that a few-step adapter brings with it: to draw otherwise than the base does is what it is for."""


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

    @property
    def prompt_key(self) -> str:
        """Return which prompt it was drawn from: images with equal ones belong together."""
        return f"{self.set}/{self.prompt_index}"


@dataclass(frozen=True)
class Arm:
    """One arm: its images in the order of their pairs, and how they were made."""

    name: str
    run: RunDir
    base: str
    """What the user called the base."""
    identity: dict[str, str]
    """Hashes of the base's parts."""
    settings: dict[str, Any]
    images: tuple[ArmImage, ...]
    own_settings: frozenset[str] = frozenset()
    """Settings that its adapter brings with it."""


def check_runs(runs: Sequence[RunDir]) -> None:
    """Refuse runs that learned different subjects, and a run named twice."""
    folders = [run.path.resolve() for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder}: is named twice.", "Name each run once.")
    first, *others = runs
    for run in others:
        if _subject(run) != _subject(first):
            raise UserError(
                f"Comparison refused: {first.path} and {run.path} learned from different pictures.",
                "Compare runs of one subject.",
            )


def read_arms(runs: Sequence[RunDir], names: Sequence[str]) -> tuple[Arm, ...]:
    """Return the base, with the first run's images of it, and each run's tuned arm under its name.

    Refuse arms that cannot be compared picture by picture.
    """
    bases = [BASE, *(f"the base of {name}" for name in names[1:])]
    base, *own_bases = (_read_arm(run, BASE, name) for run, name in zip(runs, bases, strict=True))
    tuned = [_read_arm(run, TUNED, name) for run, name in zip(runs, names, strict=True)]
    for arm in (*own_bases, *tuned):
        _check_comparable(base, arm)
    return base, *tuned


def read_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures of a folder's manifest; none where there is no manifest."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return ()
    content = read_json(manifest)
    rows = content.get("pictures") or content.get("images") or []
    return tuple(folder / row["file"] for row in rows)


def read_images(folder: Path) -> tuple[ArmImage, ...]:
    """Return the images of a folder that was drawn, in the order of their pairs."""
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
        for row in read_json(folder / "manifest.json")["images"]
    ]
    return tuple(sorted(rows, key=lambda row: row.pair))


def read_masks(folder: Path) -> dict[Path, Path]:
    """Return the mask of each picture of a folder's manifest that has one."""
    manifest = folder / "manifest.json"
    rows = read_json(manifest).get("pictures", []) if manifest.is_file() else []
    return {folder / row["file"]: folder / row["mask"] for row in rows if row.get("mask")}


def load_pixels(path: Path) -> Float[Tensor, "3 height width"]:
    """Return a picture as pixels in [-1, 1]."""
    return torch.from_numpy(_load(path, "RGB")).permute(2, 0, 1).float() / 127.5 - 1


def load_mask(path: Path) -> Float[Tensor, "height width"]:
    """Return where the subject is, in [0, 1]."""
    return torch.from_numpy(_load(path, "L")).float() / 255


def _load(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert(mode))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).", "Make the images again, or restore the file.") from error


def _read_arm(run: RunDir, side: str, name: str) -> Arm:
    folder = run.images / side
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{run.path}: has no images of {side} yet.", f"Make them with: limner evaluate {run.path}")
    manifest = read_json(folder / "manifest.json")
    try:
        images = read_images(folder)
        settings = {name: manifest[name] for name in SETTINGS}
        base, identity = manifest["base"], manifest["identity"]
    except KeyError as error:
        raise UserError(
            f"{folder / 'manifest.json'}: {error} is missing.", f"Make the images again: limner evaluate {run.path}"
        ) from error
    own = frozenset(OF_FEW_STEPS if manifest.get("few_steps") else ())
    return Arm(name=name, run=run, base=base, identity=identity, settings=settings, images=images, own_settings=own)


def _subject(run: RunDir) -> frozenset[str]:
    """Return the hashes of the files that a run learned from."""
    return frozenset(row["sha256"] for row in read_json(run.sitter / "manifest.json")["pictures"])


def _check_comparable(base: Arm, arm: Arm) -> None:
    """Refuse a comparison whose difference could come from anything but the tuning."""
    remedy = "Give both runs the same generation.* and evaluation.* settings, and evaluate them again."
    if base.identity != arm.identity:
        found, other = base.base, arm.base
        if found == other:
            found, other = (f"{a.base} ({next(iter(a.identity.values()))})" for a in (base, arm))
        raise UserError(
            f"Comparison refused: {base.name} is {found}, {arm.name} was made with {other}.",
            "Compare runs on one base.",
        )
    for setting, form in SETTINGS.items():
        found, other = base.settings[setting], arm.settings[setting]
        if found != other and setting not in arm.own_settings:
            raise UserError(f"Comparison refused: {base.name} used {form.format(found)}, {arm.name} {other}.", remedy)
    here, there = {i.pair: i for i in base.images}, {i.pair: i for i in arm.images}
    for pair in sorted(here.keys() ^ there.keys()):
        lacks = arm.name if pair in here else base.name
        name = f'set "{pair[0]}", prompt {pair[1]}, image {pair[2]}'
        raise UserError(f"Comparison refused: {lacks} lacks an image that the other arm has ({name}).", remedy)
    for pair, image in here.items():
        if (image.seed, image.plain_prompt) != (there[pair].seed, there[pair].plain_prompt):
            name = f'{image.path.name}: "{image.plain_prompt}" with seed {image.seed}'
            other = f'"{there[pair].plain_prompt}" with seed {there[pair].seed}'
            raise UserError(f"Comparison refused: {base.name} made {name}, {arm.name} {other}.", remedy)
