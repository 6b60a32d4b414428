"""Checkpoints: the state of a training between two steps, as safetensors and JSON, complete or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import Guarded
from limner.rundir import read_json, write_json
from limner.train.loop import Training

TENSORS, NUMBERS = "state.safetensors", "state.json"


def save_checkpoint(training: Training, folder: Path, *, keep: int, made_with: Mapping[str, Any] | None = None) -> Path:
    """Write the training's state under `folder` and delete all but the newest `keep` checkpoints; return its path.

    `made_with` is kept beside the state, for whoever goes on from it: see `read_made_with`. The folder appears under
    its name only when it is complete. Weights that are not finite are never written.
    """
    tensors, numbers = training.state()
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise Guarded(
            f"step {training.index}: {broken[0]} is not finite, and such a checkpoint is never written.",
            "Go on from the checkpoint before, with a lower learning rate.",
        )
    path = folder / f"step-{training.index:06d}"
    partial = folder / f".{path.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, str(partial / TENSORS))
    size = (partial / TENSORS).stat().st_size
    write_json(partial / NUMBERS, {**numbers, "bytes": size, "made_with": dict(made_with or {})})
    _sync(partial / TENSORS)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)
    _sync(folder)
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def load_checkpoint(training: Training, path: Path) -> None:
    """Bring a freshly made training to the state of a checkpoint."""
    tensors: dict[str, Tensor] = load_file(str(path / TENSORS))
    training.restore(tensors, read_json(path / NUMBERS))


def read_made_with(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says that it was made with."""
    return read_json(path / NUMBERS)["made_with"]


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run that were written to the end, oldest first."""
    found = []
    for path in sorted(folder.glob("step-*")):
        numbers, tensors = path / NUMBERS, path / TENSORS
        if numbers.is_file() and tensors.is_file() and read_json(numbers)["bytes"] == tensors.stat().st_size:
            found.append(path)
    return found


def _sync(path: Path) -> None:
    """Have the disk hold what was written, a folder's entries or a file's bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
