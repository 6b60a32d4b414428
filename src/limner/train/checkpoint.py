"""Checkpoints: the state of a training between two steps, as safetensors and JSON, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import Guarded, UserError
from limner.files import remove, replacing, sha256_of
from limner.rundir import read_json
from limner.train.loop import Training

TENSORS, NUMBERS = "state.safetensors", "state.json"
BESIDE_BYTES = 2**29
"""A state up to this size is copied and written while the training goes on; a larger one is written in between."""


@dataclass(frozen=True)
class State:
    """The state of a training between two steps, all of it finite."""

    step: int
    tensors: dict[str, Tensor]
    """The training's own, which its next step changes, or copies of them."""
    numbers: dict[str, Any]

    @property
    def bytes(self) -> int:
        """How large the tensors are."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def copied(self) -> State:
        """Return the same with copies of the tensors, on the CPU: the training may go on."""
        return replace(self, tensors={name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()})


def take_state(training: Training) -> State:
    """Return the training's state.

    Raises:
        Guarded: weights or averages are not finite; such a checkpoint is never written.
    """
    tensors, numbers = training.state()
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not torch.nn.utils.get_total_norm(list(floats.values())).isfinite():  # or only too large to be squared
        broken = [name for name, tensor in floats.items() if not tensor.isfinite().all()]
        if broken:
            raise Guarded(
                f"step {training.index}: {broken[0]} is not finite, and such a checkpoint is never written.",
                "Go on from the checkpoint before, with a lower learning rate.",
            )
    return State(training.index, tensors, numbers)


def save_checkpoint(training: Training, folder: Path, *, keep: int, **more: Any) -> Path:
    """Take the training's state and write it: see `take_state` and `write_checkpoint`."""
    return write_checkpoint(take_state(training), folder, keep=keep, **more)


def write_checkpoint(
    state: State,
    folder: Path,
    *,
    keep: int,
    made_with: Mapping[str, Any] | None = None,
    validation_loss: float | None = None,
    keep_best: bool = False,
    keep_step: int | None = None,
) -> Path:
    """Write a state under `folder`, delete what is not among the newest `keep`, and return its path.

    With `keep_best` the one of the lowest validation loss stays too, and so does that of `keep_step`. `made_with` is
    kept beside the state, for whoever goes on from it: see `read_made_with`. The folder appears under its name only
    when it is complete and on the disk.
    """
    path = checkpoint_of(folder, state.step)
    with replacing(path) as new:
        new.mkdir()
        save_file(state.tensors, str(new / TENSORS))
        numbers = {**state.numbers, "made_with": dict(made_with or {}), "validation_loss": validation_loss}
        sums = {TENSORS: sha256_of(new / TENSORS), NUMBERS: sum_of(numbers)}
        (new / NUMBERS).write_text(json.dumps({**numbers, "sha256": sums}, indent=1), encoding="utf-8")
    _rotate(folder, state.step, keep, keep_best=keep_best, keep_step=keep_step)
    return path


def checkpoint_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies, or would."""
    return folder / f"step-{step:06d}"


def load_checkpoint(training: Training, path: Path) -> None:
    """Bring a freshly made training to the state of a checkpoint."""
    tensors: dict[str, Tensor] = load_file(str(path / TENSORS))
    training.restore(tensors, read_json(path / NUMBERS))


def read_made_with(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says that it was made with."""
    return read_json(path / NUMBERS)["made_with"]


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run whose checksums hold, oldest first."""
    return [path for path in _found(folder) if not _damage_of(path)]


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint whose checksums hold, or None where a run has none yet; say which are damaged.

    Raises:
        UserError: there are some, and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_found(folder)):
        reason = _damage_of(path)
        if not reason:
            for bad, why in damaged.items():
                say(f"{folder.name}/{bad.name} is damaged ({why}); going on from {path.name}.")
            return path
        damaged[path] = reason
    if damaged:
        first, why = next(iter(damaged.items()))
        raise UserError(
            f"{folder}: every checkpoint is damaged ({first.name}: {why}).", "Bring a copy back, or start a new run."
        )
    return None


def best_checkpoint(folder: Path) -> tuple[Path, float] | None:
    """Return the checkpoint of the lowest validation loss, and that loss; None where none was measured."""
    return min(_measured(complete_checkpoints(folder)), key=lambda found: found[1], default=None)


def _rotate(folder: Path, step: int, keep: int, *, keep_best: bool, keep_step: int | None) -> None:
    """Delete all but the newest and those to choose from; also those after `step`, of a course that was not taken."""
    ours = [path for path in _found(folder) if _step_of(path) <= step]
    staying = [*ours[-keep:], *(path for path in ours if _step_of(path) == keep_step)]
    if keep_best:
        staying += [path for path, _ in sorted(_measured(ours), key=lambda found: found[1])[:1]]
    for path in _found(folder):
        if path not in staying:
            remove(path)


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _measured(paths: Sequence[Path]) -> list[tuple[Path, float]]:
    """Return the checkpoints whose validation loss is known, with it."""
    losses = ((path, _numbers(path).get("validation_loss")) for path in paths)
    return [(path, loss) for path, loss in losses if loss is not None]


def _numbers(path: Path) -> dict[str, Any]:
    """Return what a checkpoint's JSON holds; nothing where it cannot be read."""
    try:
        return read_json(path / NUMBERS)
    except UserError:
        return {}


def _damage_of(path: Path) -> str:
    """Return what is wrong with a checkpoint; nothing where it is whole."""
    sums = (numbers := _numbers(path)).pop("sha256", {})
    if not (path / TENSORS).is_file():
        return f"{TENSORS} is missing"
    if sums.get(NUMBERS) != sum_of(numbers):
        return f"{NUMBERS} is not what was written"
    return "" if sha256_of(path / TENSORS) == sums[TENSORS] else "its checksum differs"


def sum_of(numbers: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what state.json holds beside its checksums."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
