"""Checkpoints: damage is noticed and said, the newest whole one is taken, the best one stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.errors import Guarded, Unwritable, UserError
from limner.families.family import Family
from limner.objectives import Denoising
from limner.recipe import Checkpoint, Recipe
from limner.rundir import RunDir
from limner.stepping import Checkpoints, Spared
from limner.train.checkpoint import best_checkpoint, complete_checkpoints, newest_checkpoint, save_checkpoint
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from tests.pipeline.drawn import Drawn
from tests.pipeline.lines import Lines


@pytest.fixture
def training(family: Family) -> Training:
    adapter = LoRA(targets="attention").attach(family, [SlotSettings(seed=0, rank=1)])
    slot = Slot("s", Drawn(0), seed=0, steps=20, learning_rate=1e-3)
    return Training(family, adapter, [slot], objective=Denoising(), optimizer=AdamW())


def save(training: Training, folder: Path, *losses: float | None, keep: int = 2, keep_best: bool = True) -> list[int]:
    """Save one checkpoint per loss, as if a step lay between each two; return the steps that are there at the end."""
    for loss in losses:
        training.index += 1
        save_checkpoint(training, folder, keep=keep, validation_loss=loss, keep_best=keep_best)
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(folder)]


def test_the_best_one_is_never_rotated_away(training: Training, tmp_path: Path) -> None:
    assert save(training, tmp_path, None, 0.5, 0.2, 0.4) == [3, 4]
    assert save(training, tmp_path, 0.3, 0.6) == [3, 5, 6]
    assert best_checkpoint(tmp_path) == (tmp_path / "step-000003", 0.2)
    assert save(training, tmp_path, 0.1) == [6, 7]
    assert save(training, tmp_path, 0.2, 0.2, keep_best=False) == [8, 9]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["a bit", "cut", "gone"])
def test_damage_is_said_and_the_one_before_is_taken(training: Training, tmp_path: Path, file: str, harm: str) -> None:
    save(training, tmp_path, None, None)
    broken = tmp_path / "step-000002" / file
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "gone":
        broken.unlink()
    else:
        broken.write_bytes(data if harm == "a bit" else data[:-9])
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / "step-000001"
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path.name}/step-000002 is damaged (")
    assert said[0].endswith("; going on from step-000001.")
    assert save(training, tmp_path, None, keep=3) == [1, 3]


def test_all_damaged_is_one_line_and_none_is_none(training: Training, tmp_path: Path) -> None:
    said: list[str] = []
    assert newest_checkpoint(tmp_path / "nowhere", said.append) is None
    save(training, tmp_path, None, None)
    for path in tmp_path.glob("*/state.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"every checkpoint is damaged \(step-000002: its checksum differs\)"):
        newest_checkpoint(tmp_path, said.append)
    assert said == []


def test_what_is_not_finite_is_not_written(training: Training, tmp_path: Path) -> None:
    save(training, tmp_path, None)
    with torch.no_grad():
        next(iter(training.parameters[0].values())).fill_(float("nan"))
    with pytest.raises(Guarded, match="is not finite, and such a checkpoint is never written"):
        save(training, tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.parametrize("steps", [0, 2])
def test_the_size_of_the_state_is_known_before_the_first_step(training: Training, tmp_path: Path, steps: int) -> None:
    for _ in range(steps):
        training.step()
    foretold = sum(update.state_bytes() for update in training.updates)
    training.step()
    path = save_checkpoint(training, tmp_path, keep=1)
    real = (path / "state.safetensors").stat().st_size
    header = 8 + int.from_bytes((path / "state.safetensors").read_bytes()[:8], "little")
    assert foretold == pytest.approx(real - header, rel=0.01)
    assert json.loads((path / "state.json").read_text())["step"] == steps + 1


@pytest.mark.parametrize("beside", [True, False])
def test_what_is_written_is_the_state_of_its_step_whatever_the_training_does_meanwhile(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setattr("limner.stepping.BESIDE_BYTES", 2**29 if beside else 0)
    watch, folder = Lines(), RunDir(tmp_path)
    checkpoints = Checkpoints(folder, Recipe(checkpoint=Checkpoint(keep=3)), training, Spared(watch))
    expected: list[bytes] = []
    for _ in range(3):
        training.step()
        training.index += 10
        expected.append(Path(save_checkpoint(training, tmp_path / "plain", keep=1), "state.safetensors").read_bytes())
        checkpoints.begin()
        for parameter in training.parameters[0].values():
            parameter.detach().add_(1)
    checkpoints.close()
    written = [path / "state.safetensors" for path in complete_checkpoints(folder.checkpoints)]
    same = [same_tensors(load(f.read_bytes()), load(data)) for f, data in zip(written, expected, strict=True)]
    assert same == [True] * 3
    monkeypatch.setattr("limner.stepping.write_checkpoint", refuse)
    checkpoints = Checkpoints(folder, Recipe(), training, Spared(watch))
    for _ in range(2):
        checkpoints.begin()
        checkpoints.finish()
    checkpoints.close()
    assert watch.said == ["no room. Make some. The training goes on, and the next checkpoint is tried again."]


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def refuse(*_: object, **__: object) -> None:
    raise Unwritable("no room.", "Make some.")
